# A VM whose TPM is a vRoT, and a device beside it.
# shellcheck shell=sh source=scripts/package-boots/common.sh
. /checks/common.sh

say "packages are installed, and nothing runs by itself"
install_packages /packages/vrot-guest.deb /packages/vrot-device.deb
nothing_runs_by_itself vrot-guest vrot-device
systemd_takes_units_of vrot-guest vrot-device

say "the service answers a device's challenge"
systemctl enable --quiet --now vrot-service
soon "it listens" logged vrot-service 'answering challenges'
confined vrot-service
vrot-service identity > /dev/null
install -D -m 0644 parcel/root.pem /etc/vrot/root.pem
vrot-device reference --connect 127.0.0.1:7071 --roots /etc/vrot/root.pem > reference.toml
{
    printf '[trust]\nroots = "root.pem"\n\n[expect]\nvm = "%s"\nhosts = ["host-1.example.org"]\n\n' "$(cat parcel/vm)"
    cat reference.toml
} > /etc/vrot/policy.toml
vrot-device attest --connect 127.0.0.1:7071 --policy /etc/vrot/policy.toml

say "both proxies carry an attested connection"
# As docs/integrator.md and docs/device.md say.
printf '%s\n' VROT_LISTEN=0.0.0.0:7072 VROT_FORWARD=127.0.0.1:8081 VROT_DEVICES=--any-device > /etc/default/vrot-proxy-web
systemctl enable --quiet --now vrot-proxy@web
printf '%s\n' VROT_LISTEN=127.0.0.1:8080 VROT_CONNECT=localhost:7072 VROT_POLICY=/etc/vrot/policy.toml \
    > /etc/default/vrot-device-proxy-web
systemctl enable --quiet --now vrot-device-proxy@web
# The service: one answer for each connection.
systemd-run --quiet --unit web sh -c \
    'while :; do printf "HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n" | nc -lN 127.0.0.1 8081; done'
answered() {
    [ "$(curl -sS -m 60 http://127.0.0.1:8080/)" = hello ]
}
soon "the connection carries data" answered
logged vrot-device-proxy@web 'verdict=affirming' || fail "the device's proxy does not say what it is connected to"
confined vrot-proxy@web
confined vrot-device-proxy@web

say "a proxy that ends by itself is started again"
for unit in vrot-proxy@web vrot-device-proxy@web vrot-service; do
    kill -KILL "$(property "$unit" MainPID)"
done
for unit in vrot-proxy@web vrot-device-proxy@web vrot-service; do
    soon "$unit is started again" is "$unit" 1 NRestarts
done
soon "the connection carries data again" answered

say "an instance without settings is not started, for want of its file"
! systemctl start vrot-proxy@none 2> /tmp/refused || fail "it starts"
grep -qF 'Assertion failed' /tmp/refused || fail "it is refused for another reason: $(cat /tmp/refused)"

say "an upgrade restarts what runs"
before=$(property vrot-proxy@web MainPID)
install_packages /newer/vrot-guest.deb /newer/vrot-device.deb
[ "$(property vrot-proxy@web MainPID)" != "$before" ] || fail "the old proxy still runs"
soon "the connection carries data after the upgrade" answered
nothing_was_out_of_reach vrot-guest vrot-device
! systemctl --no-pager --no-legend --failed | grep . || fail "units failed"

say "removing packages stops their units; purging takes all of them"
DEBIAN_FRONTEND=noninteractive apt-get remove -q -y vrot-guest vrot-device > /dev/null
for unit in vrot-service vrot-proxy@web vrot-device-proxy@web; do
    ! is "$unit" active || fail "$unit goes on without its package"
done
rm -r /etc/vrot /etc/default/vrot-proxy-web /etc/default/vrot-device-proxy-web
DEBIAN_FRONTEND=noninteractive apt-get purge -q -y vrot-guest vrot-device > /dev/null 2>&1
gone

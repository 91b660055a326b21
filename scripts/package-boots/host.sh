# A host, which is a device with a terminal as well: its TPM is a software TPM that firmware measured into.
# shellcheck shell=sh source=scripts/package-boots/common.sh
. /checks/common.sh

packages='vrot-host vrot-operator vrot-device vrot-confirm vrot-tenant'
PIN=482915 LOCKOUT=lockout-password-7

files() {
    for package in $packages; do echo "$1/$package.deb"; done
}

before_the_reboot() {
    say "packages are installed, and nothing runs by itself"
    install_packages $(files /packages)
    nothing_runs_by_itself vrot-host vrot-device vrot-confirm
    systemd_takes_units_of vrot-host vrot-device vrot-confirm

    say "the manager starts with the TPM, and is enrolled"
    systemctl enable --quiet --now vtpm-managerd
    is vtpm-managerd active || fail "the manager does not run"
    soon "the manager says how it stands" is vtpm-managerd \
        'serving, but the store is not open: `vtpmctl host show` tells why' StatusText
    vtpmctl host policy keygen --out operator.pem
    vtpmctl issuer init --dir issuer --domain example.org --tpm-roots parcel/tpm-makers.pem \
        --operator-keys operator.pem.pub
    vtpmctl host init --policy-key operator.pem.pub
    vtpmctl host policy show --output json > pcrs.json
    vtpmctl host policy sign --key operator.pem --pcrs pcrs.json --out approval.json
    vtpmctl host policy approve approval.json
    soon "systemd knows that the store is open" is vtpm-managerd serving StatusText
    vtpmctl host enrol --name host-1 --issuer issuer
    vtpmctl host show | tee shown
    grep -q 'isolation of backends *own-users' shown || fail "backends have no users of their own"
    confined vtpm-managerd

    say "a vRoT runs, confined, and outlives the manager"
    vm=$(cat /proc/sys/kernel/random/uuid)
    echo "$vm" > vm
    vtpmctl create --vm "$vm" --tenant acme --start
    backend=$(vtpmctl show "$vm" | awk '$1 == "process" { print $2 }')
    [ "$(awk '/^Uid:/ { print $2 }' "/proc/$backend/status")" -ge 2000000000 ] || fail "the backend is nobody's user"
    grep -q '^CapEff:[[:space:]]*0*$' "/proc/$backend/status" || fail "the backend has capabilities"
    grep -q '^CapBnd:[[:space:]]*0*$' "/proc/$backend/status" || fail "the backend could get capabilities"
    soon "it is certified" certified
    systemctl restart vtpm-managerd
    same_backend
    kill -KILL "$(property vtpm-managerd MainPID)"
    soon "the manager is started again" is vtpm-managerd 1 NRestarts
    soon "it serves" is vtpm-managerd serving StatusText
    same_backend
    systemctl stop vtpm-managerd
    [ -d "/proc/$backend" ] || fail "the backend ended with the manager"
    systemctl start vtpm-managerd
    same_backend

    say "a configuration that is refused is not tried again, and costs no vRoT"
    cp /etc/vtpm-manager/config.toml config.toml
    echo 'nonsense = 1' >> /etc/vtpm-manager/config.toml
    ! systemctl restart vtpm-managerd 2> /dev/null || fail "nonsense was accepted"
    is vtpm-managerd failed || fail "it is tried again"
    journalctl --boot --unit vtpm-managerd --priority err --output cat | grep -F 'unknown field `nonsense`' ||
        fail "the journal has no error that says why"
    cp config.toml /etc/vtpm-manager/config.toml
    systemctl start vtpm-managerd
    same_backend

    say "the doctor finds nothing wrong"
    ended=0
    vtpmctl doctor > doctor || ended=$?
    cat doctor
    # Nothing sets the clock of this machine.
    [ "$ended" = 3 ] && [ "$(grep -c WARNING doctor)" = 1 ] && grep -q 'WARNING *clock' doctor ||
        fail "the doctor ends with $ended"

    say "the page is served on its socket, for whoever has the token"
    systemctl enable --quiet --now vrot-dashboard
    soon "the page" curl -sf --unix-socket /run/vrot-dashboard/page.sock http://127.0.0.1/
    [ "$(stat -c '%a %U' /run/vrot-dashboard)" = '700 root' ] || fail "others get at the page"
    confined vrot-dashboard
    no_secret "$(cat /run/vrot-dashboard/token)"

    say "tenants come by the socket"
    printf '[tenants]\nlisten = ["systemd"]\nissuer = "/etc/vtpm-manager/root.pem"\n' >> /etc/vtpm-manager/config.toml
    install -m 0644 issuer/root.pem /etc/vtpm-manager/root.pem
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout acme.key -out acme.csr \
        -subj /CN=acme 2> /dev/null
    vtpmctl issuer tenant add acme --dir issuer --csr acme.csr --out acme.pem
    # As docs/tenant.md says.
    systemctl enable --quiet vtpm-managerd-tenants.socket
    systemctl restart vtpm-managerd
    is vtpm-managerd-tenants.socket active || fail "the socket does not listen"
    soon "a tenant is answered" tenant
    grep -qF "$vm" /tmp/soon || fail "the tenant does not see the VM: $(cat /tmp/soon)"
    same_backend

    say "libvirt's timer runs, and its service has nothing to do without libvirt"
    systemctl enable --quiet --now vrot-libvirt-sync.timer
    is vrot-libvirt-sync.timer active || fail "the timer does not run"
    mkdir -p /var/lib/vrot-libvirt
    systemctl start vrot-libvirt-sync.service
    is vrot-libvirt-sync.service success Result || fail "the service failed"
    rmdir /var/lib/vrot-libvirt

    say "a person confirms on tty12"
    vrot-device enrol request --name desk-1 --out 1.json
    vtpmctl issuer challenge --dir issuer --request 1.json --device desk-1 --out 2.json
    vrot-device enrol answer --challenge 2.json --out 3.json
    vtpmctl issuer certify --dir issuer --answer 3.json --out 4.json
    vrot-device enrol install --certificate 4.json --identity /etc/vrot/identity
    install -o vrot-confirm -m 0644 /etc/vrot/identity/certificate.pem /var/lib/vrot-confirm/certificate.pem
    tpm2_dictionarylockout --setup-parameters --max-tries 5 --recovery-time 600 --lockout-recovery-time 86400
    tpm2_changeauth -c lockout "$LOCKOUT"
    set_a_pin
    systemctl enable --quiet --now vrot-confirm
    soon "the daemon listens" test -S /run/vrot-confirm/socket
    confined vrot-confirm
    [ "$(stat -c '%U' /dev/tty12)" = vrot-confirm ] || fail "the terminal is somebody else's"
    echo 'Pay 100 EUR to ACME' > order.txt
    asked
    type_on_terminal "$PIN
"
    wait "$asking" || fail "the order was not confirmed"
    [ "$(cat /sys/class/tty/tty0/active)" != tty12 ] || fail "the terminal before does not come back"
    printf 'demand = "required"\nroots = "issuer/root.pem"\ndevices = ["spiffe://example.org/desk-1"]\nkeys = ["%s"]\nmax_age_s = 300\n' \
        "$key" > confirmations.toml
    vrot-device verify-confirmation --confirmation confirmation.cbor --text order.txt --service shop.example \
        --nonce "$nonce" --policy confirmations.toml

    say "a daemon that is killed in mid-request lets the terminal go when it is back"
    asked
    kill -KILL "$(property vrot-confirm MainPID)"
    ! wait "$asking" || fail "nobody confirmed"
    soon "it is started again" is vrot-confirm 1 NRestarts
    soon "the lock is taken back" test ! -e /run/vrot-confirm/socket.locked
    chvt 1
    asked
    systemctl stop vrot-confirm
    ! wait "$asking" || fail "nobody confirmed"
    [ ! -e /run/vrot-confirm/socket.locked ] || fail "the terminal is still locked"
    chvt 1
    systemctl start vrot-confirm

    say "a device's proxy takes its own root of trust by a drop-in"
    # As docs/device.md says; the VM of the other machine is where connections are made.
    mkdir -p /etc/systemd/system/vrot-device-proxy@.service.d
    printf '%s\n' '[Service]' PrivateDevices=no 'DeviceAllow=/dev/tpmrm0 rw' SupplementaryGroups=tss \
        'ExecStartPre=-+/usr/bin/install -D -g tss -m 0440 -T /sys/kernel/security/tpm0/binary_bios_measurements /run/vrot-device/event-log' \
        > /etc/systemd/system/vrot-device-proxy@.service.d/override.conf
    systemctl daemon-reload
    install -m 0644 issuer/root.pem /etc/vrot/root.pem
    printf '[trust]\nroots = "root.pem"\n\n[expect]\ntenant = "acme"\nhosts = ["host-1.example.org"]\n\n' > /etc/vrot/policy.toml
    for layer in host vm; do
        vrot-device reference --event-log /run/vrot-host/event-log --layer "$layer" >> /etc/vrot/policy.toml
    done
    printf '%s\n' VROT_LISTEN=127.0.0.1:8080 VROT_CONNECT=127.0.0.1:7072 VROT_POLICY=/etc/vrot/policy.toml \
        'VROT_OPTIONS=--identity /etc/vrot/identity --event-log /run/vrot-device/event-log' \
        > /etc/default/vrot-device-proxy-own
    systemctl enable --quiet --now vrot-device-proxy@own
    soon "it listens" logged vrot-device-proxy@own 'listen=127.0.0.1:8080'
    confined vrot-device-proxy@own

    say "an upgrade restarts what runs, and vRoTs go on"
    manager=$(property vtpm-managerd MainPID)
    install_packages $(files /newer)
    for unit in vtpm-managerd vrot-dashboard vrot-confirm vrot-device-proxy@own; do
        soon "$unit runs after the upgrade" is "$unit" active
    done
    [ "$(property vtpm-managerd MainPID)" != "$manager" ] || fail "the old manager still runs"
    same_backend

    nothing_was_out_of_reach vrot-host vrot-device vrot-confirm
    no_secret "$PIN" "$LOCKOUT" "$(cat /run/vrot-dashboard/token)"
}

after_the_reboot() {
    say "after a reboot of the host, what was enabled runs, and the vRoT starts again"
    for unit in vtpm-managerd vtpm-managerd-tenants.socket vrot-dashboard vrot-libvirt-sync.timer vrot-confirm \
        vrot-device-proxy@own; do
        soon "$unit runs after a reboot" is "$unit" active
    done
    soon "the store is open" is vtpm-managerd serving StatusText
    vm=$(cat vm)
    vtpmctl start "$vm"
    soon "it runs" running
    soon "a tenant is answered" tenant
    [ -r /run/vrot-host/event-log ] || fail "there is no event log"
    nothing_was_out_of_reach vrot-host vrot-device vrot-confirm
    ! systemctl --no-pager --no-legend --failed | grep . || fail "units failed"

    say "removing packages stops their units and keeps state; purging takes all but users"
    vtpmctl stop "$vm"
    DEBIAN_FRONTEND=noninteractive apt-get remove -q -y $packages > /dev/null
    for unit in vtpm-managerd.service vtpm-managerd-tenants.socket vrot-dashboard.service vrot-libvirt-sync.timer \
        vrot-confirm.service vrot-device-proxy@own.service; do
        ! is "$unit" active || fail "$unit goes on without its package"
    done
    [ -s /var/lib/vtpm-manager/store.redb ] || fail "the state is gone"
    [ -s /var/lib/vrot-confirm/key ] || fail "the person's key is gone"
    # What an administrator wrote is theirs to take away.
    rm -r /etc/systemd/system/vrot-device-proxy@.service.d /etc/default/vrot-device-proxy-own /etc/vtpm-manager/root.pem \
        /etc/vrot
    # The others have neither configuration nor scripts for it: they were purged by their removal.
    DEBIAN_FRONTEND=noninteractive apt-get purge -q -y vrot-host vrot-device vrot-confirm > /dev/null 2>&1
    gone
    getent passwd vtpm-manager > /dev/null || fail "the manager's user is gone"
}

certified() {
    vtpmctl list | grep running | grep -v pending
}

running() {
    vtpmctl list | grep running
}

tenant() {
    curl -sS --cacert issuer/root.pem --cert acme.pem --key acme.key \
        --resolve host-1.example.org:8443:127.0.0.1 https://host-1.example.org:8443/v1/vms
}

# The vRoT that was started first serves on, and the manager has it.
same_backend() {
    [ -d "/proc/$backend" ] || fail "the backend ended"
    soon "the manager has the vRoT again" running
}

# The PIN is typed on a terminal.
set_a_pin() {
    { sleep 10; printf '%s\r' "$PIN"; sleep 10; printf '%s\r' "$PIN"; sleep 20; } |
        script -qec 'runuser -u vrot-confirm -- vrot-confirm enrol --key /var/lib/vrot-confirm/key' /dev/null > enrolled
    key=$(grep -ao '000b[0-9a-f]\{64\}' enrolled) || fail "no PIN was set: $(cat enrolled)"
}

# A request that a person sees.
asked() {
    nonce=$(openssl rand -hex 32)
    rm -f confirmation.cbor
    vrot-confirm ask --text order.txt --service shop.example --nonce "$nonce" --out confirmation.cbor &
    asking=$!
    soon "the request is shown" grep -q 'Pay 100 EUR to ACME' /dev/vcs12
    [ "$(cat /sys/class/tty/tty0/active)" = tty12 ] || fail "the terminal is not in front"
    # What is typed before the text could be read counts for nothing.
    sleep 3
}

# As the keyboard would (TIOCSTI).
type_on_terminal() {
    perl -e 'open(my $t, "+<", "/dev/tty12") or die $!;
        for (split //, $ARGV[0]) { ioctl($t, 0x5412, $_) or die $!; select(undef, undef, undef, 0.1) }' "$1"
}

if [ -e vm ]; then
    after_the_reboot
else
    before_the_reboot
    exit 10
fi

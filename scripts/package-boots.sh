#!/bin/sh
# Boots each release of Debian with systemd in virtual machines, installs the Debian packages there as an operator
# does, and has every unit do its work: first a host and a device, whose TPM swtpm plays, then a VM whose TPM is a
# vRoT. What is looked at there stands in scripts/package-boots/. As root; needs debootstrap and a mirror.
#
#   scripts/package-boots.sh [RELEASE…]      by default bookworm trixie
#
# debian-roots.sh says how roots and packages are made. QEMU emulates the processor, so this takes some ten minutes
# for each release. What the machines said is left in target/package-boots/RELEASE.
set -eu
umask 022
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

# shellcheck source=scripts/debian-roots.sh
. "$(dirname "$0")/debian-roots.sh"
[ $# -gt 0 ] || set -- bookworm trixie

firmware=/usr/share/OVMF/OVMF_CODE_4M.fd
[ -r "$firmware" ] || fail "$firmware is missing: apt-get install ovmf"
# For a machine with all its checks, on a processor that is emulated and shared.
patience=3600

# Processes of this script that it has not waited for, each by its number, and the VM whose vRoT a manager runs.
started=
emulator=
vrot=
# Of a manager's vRoT the program goes on without it, and is no child of this script.
end_started() {
    if [ -n "$emulator" ]; then
        kill "$emulator" 2> /dev/null || true
        wait "$emulator" || true
        emulator=
    fi
    if [ -n "$vrot" ]; then
        "$programs/vtpmctl" stop "$vrot" > "$scratch/stop.log" 2>&1 || cat "$scratch/stop.log" >&2
        vrot=
    fi
    for process in $started; do
        kill "$process" 2> /dev/null || true
        wait "$process" || true
    done
    started=
}
leave() {
    end_started
    remove "$scratch"
}

# machine RELEASE: a root that boots, with what our packages need and a newer version of them, in $scratch/root.
machine() {
    bootable=$kept/$1-machine.tar
    if [ ! -e "$bootable" ]; then
        base "$1"
        install_packages systemd-sysv udev dbus kmod linux-image-cloud-amd64 initramfs-tools libtss2-esys-3.0.2-0 \
            libtss2-tcti-device0 libtpms0 tpm-udev tpm2-tools curl iproute2 netcat-openbsd openssl procps kbd
        within apt-get clean
        umount "$scratch/root/proc"
        tar --numeric-owner -C "$scratch/root" -cf "$bootable.new" .
        mv "$bootable.new" "$bootable"
        remove "$scratch/root"
    fi
    mkdir "$scratch/root"
    tar --numeric-owner -C "$scratch/root" -xf "$bootable"
    bring_packages
    newer 1 host operator guest device confirm tenant
    mkdir "$scratch/root/checks"
    cp "$project"/scripts/package-boots/* "$scratch/root/checks/"
    cat > "$scratch/root/etc/systemd/system/checks.service" << 'END'
[Unit]
Description=What scripts/package-boots.sh looks at
After=multi-user.target

[Service]
Environment=HOME=/root LC_ALL=C.UTF-8
WorkingDirectory=/root
ExecStart=/bin/sh -c 'stty -F /dev/ttyS1 raw && exec sh /checks/begin.sh > /dev/ttyS1 2>&1'

[Install]
WantedBy=multi-user.target
END
    systemctl --quiet --root="$scratch/root" enable checks.service systemd-networkd.service
    printf '[Match]\nType=ether\n[Network]\nDHCP=yes\n' > "$scratch/root/etc/systemd/network/10-card.network"
    echo 'LABEL=root / ext4 defaults 0 1' > "$scratch/root/etc/fstab"
    echo machine > "$scratch/root/etc/hostname"
    echo '127.0.0.1 localhost machine' > "$scratch/root/etc/hosts"
    cp "$scratch"/root/boot/vmlinuz-* "$scratch/kernel"
    cp "$scratch"/root/boot/initrd.img-* "$scratch/initrd"
    rm -f "$scratch/disk"
    truncate -s 3G "$scratch/disk"
    mke2fs -q -t ext4 -L root -d "$scratch/root" "$scratch/disk"
    remove "$scratch/root"
}

# boot NAME TPM: a machine with the TPM behind that control socket and with the files in $scratch/parcel. It runs
# the checks for NAME and switches itself off.
boot() {
    echo "== $release: $1"
    log=$target/package-boots/$release/$1.log
    tar -C "$scratch/parcel" -cf "$scratch/parcel.tar" .
    qemu-img create -q -f qcow2 -b "$scratch/disk" -F raw "$scratch/$1.disk"
    cp "${firmware%CODE_4M.fd}VARS_4M.fd" "$scratch/$1.variables"
    timeout "$patience" qemu-system-x86_64 -machine q35 -m 1536 -smp 2 -accel tcg -cpu max -nodefaults \
        -display none -vga std -kernel "$scratch/kernel" -initrd "$scratch/initrd" \
        -append "root=LABEL=root rw console=ttyS0 quiet check=$1" \
        -serial "file:$log.console" -serial "file:$log" \
        -drive "if=pflash,format=raw,unit=0,readonly=on,file=$firmware" \
        -drive "if=pflash,format=raw,unit=1,file=$scratch/$1.variables" \
        -drive "file=$scratch/$1.disk,if=virtio" \
        -drive "file=$scratch/parcel.tar,format=raw,if=virtio,readonly=on" \
        -netdev user,id=net0 -device virtio-net-pci,netdev=net0,romfile= \
        -chardev "socket,id=tpm,path=$2" -tpmdev emulator,id=tpm0,chardev=tpm -device tpm-crb,tpmdev=tpm0 &
    emulator=$!
    ended=0
    wait "$emulator" || ended=$?
    # Its number can be another process's from now on.
    emulator=
    grep '^== ' "$log" || true
    if ! grep -q "^== all is well" "$log"; then
        tail -n 60 "$log" >&2
        fail "$release, $1: the checks failed (QEMU ended with $ended); all that was said is in $log"
    fi
    rm "$scratch/$1.disk"
}

# tpm NAME: a software TPM with a maker's certificates in a folder of that name.
tpm() {
    rm -rf "${scratch:?}/$1" "$scratch/maker"
    mkdir "$scratch/$1" "$scratch/maker"
    XDG_CONFIG_HOME=$scratch/maker swtpm_setup --create-config-files overwrite,root > "$scratch/swtpm.log"
    XDG_CONFIG_HOME=$scratch/maker swtpm_setup --tpm2 --create-ek-cert --pcr-banks sha256 \
        --tpm-state "$scratch/$1" >> "$scratch/swtpm.log" || fail "swtpm_setup: $(cat "$scratch/swtpm.log")"
    cat "$scratch/maker/var/lib/swtpm-localca/swtpm-localca-rootca-cert.pem" \
        "$scratch/maker/var/lib/swtpm-localca/issuercert.pem" > "$scratch/tpm-makers.pem"
}

# listens PATH: which a process does a moment after the socket's file is there.
listens() {
    [ -S "$1" ] && grep -q " 00010000 .* $1\$" /proc/net/unix
}

# until_it SECONDS WHAT COMMAND…
until_it() {
    left=$(($1 * 10))
    what=$2
    shift 2
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "$release: $what"
        sleep 0.1
    done
}

host_and_device() {
    tpm host-tpm
    swtpm socket --tpm2 --tpmstate "dir=$scratch/host-tpm" --flags not-need-init \
        --ctrl "type=unixio,path=$scratch/host-tpm.sock" > "$scratch/swtpm.log" 2>&1 &
    started="$started $!"
    until_it 30 "swtpm does not listen" listens "$scratch/host-tpm.sock"
    rm -rf "$scratch/parcel"
    mkdir "$scratch/parcel"
    cp "$scratch/tpm-makers.pem" "$scratch/parcel/"
    boot host "$scratch/host-tpm.sock"
}

# A manager of this machine gives the VM its vRoT.
vm() {
    tpm manager-tpm
    run=$scratch/manager
    rm -rf "$run"
    mkdir "$run"
    swtpm socket --tpm2 --tpmstate "dir=$scratch/manager-tpm" --flags not-need-init,startup-clear \
        --server "type=unixio,path=$run/tpm.sock" --ctrl "type=unixio,path=$run/tpm.sock.ctrl" \
        > "$scratch/swtpm.log" 2>&1 &
    started="$started $!"
    until_it 30 "swtpm does not listen" listens "$run/tpm.sock"
    # As in docs/one-machine.md: the least that firmware measures, and a log that accounts for it.
    separator() { printf '\0\0\0\0' | openssl dgst -sha256 "$@"; }
    {
        printf '\0\0\0\0\3\0\0\0'
        head -c 20 /dev/zero
        printf '\41\0\0\0Spec ID Event03\0\0\0\0\0\0\2\0\2\1\0\0\0\13\0\40\0\0'
        for pcr in 0 1 2 3 4 5 6 7; do
            tpm2_pcrextend -T "swtpm:path=$run/tpm.sock" "$pcr:sha256=$(separator -r | cut -c 1-64)" >&2
            printf "\\$pcr\\0\\0\\0\\4\\0\\0\\0\\1\\0\\0\\0\\13\\0"
            separator -binary
            printf '\4\0\0\0\0\0\0\0'
        done
    } > "$run/event-log"
    printf '%s = "%s"\n' tpm "swtpm:path=$run/tpm.sock" event_log "$run/event-log" state_dir "$run/state" \
        runtime_dir "$run/run" > "$run/config.toml"
    "$programs/vtpm-managerd" --config "$run/config.toml" 2> "$run/log" &
    started="$started $!"
    until_it 60 "the manager does not listen: $run/log" listens "$run/run/api.sock"
    export VTPM_MANAGER_SOCKET="$run/run/api.sock"
    vrot=$(cat /proc/sys/kernel/random/uuid)
    {
        "$programs/vtpmctl" host policy keygen --out "$run/operator.pem"
        "$programs/vtpmctl" issuer init --dir "$run/issuer" --domain example.org --tpm-roots "$scratch/tpm-makers.pem" \
            --operator-keys "$run/operator.pem.pub"
        "$programs/vtpmctl" host init --policy-key "$run/operator.pem.pub"
        "$programs/vtpmctl" host policy sign --key "$run/operator.pem" --from-host --approve
        "$programs/vtpmctl" host enrol --name host-1 --issuer "$run/issuer"
        "$programs/vtpmctl" create --vm "$vrot" --tenant acme --start
    } > "$run/orders.log" 2>&1 || fail "$release: the VM gets no vRoT: $(cat "$run/orders.log")"
    rm -rf "$scratch/parcel"
    mkdir "$scratch/parcel"
    cp "$run/issuer/root.pem" "$scratch/parcel/"
    echo "$vrot" > "$scratch/parcel/vm"
    boot vm "$("$programs/vtpmctl" qemu-args "$vrot" | sed 's/.*path=\([^ ,]*\).*/\1/')"
}

for release in "$@"; do
    rm -rf "$target/package-boots/$release"
    mkdir -p "$target/package-boots/$release"
    base "$release"
    pack "$release"
    machine "$release"
    host_and_device
    vm
    end_started
    echo "== $release: every unit works"
done

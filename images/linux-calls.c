/*
 * Calls of Linux that no tool in the image makes.
 *
 *   linux-calls key PAYLOAD                  adds a trusted key, prints it as it is sealed, and drops it
 *   linux-calls kexec KERNEL INITRAMFS LINE  starts another kernel, without the firmware
 */
#include <fcntl.h>
#include <linux/keyctl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int failed(const char *what)
{
    perror(what);
    return 1;
}

static int key(const char *payload)
{
    char sealed[4096];
    const long ring = KEY_SPEC_USER_KEYRING;
    long id = syscall(SYS_add_key, "trusted", "key", payload, strlen(payload), ring);
    if (id < 0)
        return failed("add_key");
    long length = syscall(SYS_keyctl, KEYCTL_READ, id, sealed, sizeof sealed);
    if (length < 0 || length > (long)sizeof sealed)
        return failed("KEYCTL_READ");
    fwrite(sealed, 1, length, stdout);
    if (syscall(SYS_keyctl, KEYCTL_UNLINK, id, ring) < 0)
        return failed("KEYCTL_UNLINK");
    return fflush(stdout) ? failed("standard output") : 0;
}

static int kexec(const char *kernel, const char *initramfs, const char *line)
{
    int files[] = {open(kernel, O_RDONLY), open(initramfs, O_RDONLY)};
    if (files[0] < 0 || files[1] < 0)
        return failed("open");
    if (syscall(SYS_kexec_file_load, files[0], files[1], strlen(line) + 1, line, 0UL) < 0)
        return failed("kexec_file_load");
    syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
    return failed("reboot");
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "key"))
        return key(argv[2]);
    if (argc == 5 && !strcmp(argv[1], "kexec"))
        return kexec(argv[2], argv[3], argv[4]);
    fprintf(stderr, "usage: linux-calls key PAYLOAD | kexec KERNEL INITRAMFS LINE\n");
    return 2;
}

// A TPM at address 0x2e of the I2C bus that the PCI device in slot 0x10 makes. With this table a
// guest has /dev/tpm0 without a command:
//
//   -device vhost-user-i2c-pci,…,addr=0x10 -acpitable file=tpm-i2c.aml
//
// Linux matches "tpm_tis_i2c", what stands behind the comma, with the name of its driver.
DefinitionBlock ("", "SSDT", 2, "VROT", "TPMI2C", 1)
{
    External (\_SB.PCI0, DeviceObj)
    External (\_SB.PCI0.S80, DeviceObj)

    // QEMU describes the slots of some machines, of others only those that are taken.
    If (LNot (CondRefOf (\_SB.PCI0.S80)))
    {
        Scope (\_SB.PCI0)
        {
            Device (S80)
            {
                Name (_ADR, 0x00100000)
            }
        }
    }

    Scope (\_SB.PCI0.S80)
    {
        Device (TPM)
        {
            Name (_HID, "PRP0001")
            Name (_DSD, Package ()
            {
                ToUUID ("daffd814-6eba-4d8c-8a91-bc9bbf4aa301"),
                Package () { Package () { "compatible", "vrot,tpm_tis_i2c" } }
            })
            Name (_CRS, ResourceTemplate ()
            {
                I2cSerialBusV2 (0x2E, ControllerInitiated, 400000, AddressingMode7Bit,
                    "\\_SB.PCI0.S80", 0, ResourceConsumer)
            })
        }
    }
}

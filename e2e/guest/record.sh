# What the kernel knows about the machine, and what our tool says about it from inside.
cd /sys/bus/pci/devices
for f in *; do
  test -e $f/sriov_numvfs || continue
  # Virtual functions are switched on through the driver of the physical one; they need none themselves.
  echo 0 > $f/sriov_drivers_autoprobe
  if ! test -e $f/driver && modprobe pci-pf-stub 2> /dev/null; then
    echo pci-pf-stub > $f/driver_override
    echo $f > /sys/bus/pci/drivers_probe
  fi
  if test -e $f/driver; then
    cat $f/sriov_totalvfs > $f/sriov_numvfs
  fi
done
facts
for f in *; do
  echo "config $f"
  bytes $f/config
done
cd /
if test -e /bin/iommu; then
  run groups iommu groups --json
  run computed iommu groups --json --model linux
  run doctor iommu doctor --json
  run caps iommu caps --json
  run caps.text iommu caps
  if test -e /sys/firmware/acpi/tables/DMAR; then
    run dmar iommu dmar show --json /sys/firmware/acpi/tables/DMAR
  fi
  run snapshot.text iommu snapshot /snapshot
  send snapshot /snapshot
fi
finish

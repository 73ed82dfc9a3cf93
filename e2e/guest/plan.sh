# Puts the functions named in /functions on vfio-pci, in the way that our tool prints.
facts
for f in $(cat /functions); do
  run "plan-$f" iommu plan "$f" --format shell
  cp /out /plan
  run "execution-$f" sh /plan
  cd /sys/bus/pci/devices/$f
  if test -e driver; then
    driver=$(readlink driver)
    echo "driver $f ${driver##*/}"
  fi
  cd /
  run "check-$f" iommu check "$f" --json
done
ls /dev/vfio > /out
send nodes /out
finish

# Gives one endpoint of every group to user space in the way that our tool prints, and takes all of them back.
drivers() {
  for f in /sys/bus/pci/devices/*; do
    driver=none
    test -e $f/driver && driver=$(readlink $f/driver)
    echo "${f##*/} ${driver##*/}"
  done
}

# The first function of a group that is no bridge (class 06).
endpoint_of() {
  for f in $1/devices/*; do
    grep -q "^0x06" $f/class || { echo ${f##*/}; return; }
  done
}

facts
run drivers.before drivers
chosen=
for g in /sys/kernel/iommu_groups/*; do
  f=$(endpoint_of $g)
  test -n "$f" && chosen="$chosen $f"
done
for f in $chosen; do
  # The way back leads to what is there now, as it does if it is asked for later: half of them are.
  run "back $f" iommu plan $f --format sysfs --undo
  cp /out /back-$f
  run "plan $f" iommu plan $f --format sysfs
  cp /out /plan
  run "execution $f" sh /plan
done
run drivers.planned drivers
ls /dev/vfio > /out
send nodes /out
late=
for f in $chosen; do
  if test -n "$late"; then
    run "late $f" iommu plan $f --format sysfs --undo
    cp /out /back-$f
    late=
  else
    late=yes
  fi
  run "retreat $f" sh /back-$f
done
run drivers.after drivers
finish

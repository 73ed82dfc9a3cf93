# VFIO of this kernel, used by our driver: /functions lists the DMA engine and then the disk.
# The shell would tell of every program that is killed.
exec 2> /dev/null
mount -t tracefs trace /sys/kernel/tracing
modprobe vfio-pci
modprobe vfio_iommu_type1
facts
set -- $(cat /functions)
engine=$1
disk=$2
for f in $engine $disk; do
  echo vfio-pci > /sys/bus/pci/devices/$f/driver_override
  test -e /sys/bus/pci/devices/$f/driver && echo $f > /sys/bus/pci/devices/$f/driver/unbind
  echo $f > /sys/bus/pci/drivers_probe
done

# Pages that the kernel holds for devices, and domains: what a driver that is gone may not leave behind.
held() {
  # The counters are gathered from the processors first.
  cat /proc/sys/vm/stat_refresh > /dev/null
  grep nr_foll_pin /proc/vmstat
  echo "domains $(cat /sys/class/iommu/dmar0/intel-iommu/domains_used)"
}

run conformance vfio-guest conformance $engine
run probe vfio-guest probe $engine
run faults iommu faults --json
run faults.text iommu faults
run caps iommu caps --json
run rehearsal iommu run --backend linux --device $disk --json
run disk vfio-guest disk $disk

# A user who is not root, and may have half a MiB pinned.
mkdir -p /etc
echo "user:x:1000:1000::/:/bin/sh" > /etc/passwd
echo "user:x:1000:" > /etc/group
busybox chmod 666 /dev/vfio/*
limited() (
  ulimit -l 512
  exec busybox su -s /bin/sh user -c "vfio-guest churn $engine 1000"
)
run pinned limited

# A driver that is killed before each of its steps, until it has none left; then at moments of nobody's choosing.
echo 1 > /sys/kernel/tracing/events/iommu/map/enable
echo 1 > /sys/kernel/tracing/events/iommu/unmap/enable
step=0
status=137
run "held before" held
while test $status = 137 -a $step -lt 100; do
  echo > /sys/kernel/tracing/trace
  vfio-guest churn $engine $step > /out 2>&1
  status=$?
  echo "ended $status churn $step"
  send "churn $step" /out
  run "held $step" held
  cat /sys/kernel/tracing/trace > /trace
  send "trace $step" /trace
  step=$((step + 1))
done
for wait in $(seq 20 37 400); do
  echo > /sys/kernel/tracing/trace
  vfio-guest churn $engine 1000 > /out 2>&1 &
  usleep $((wait * 1000))
  kill -9 $!
  wait $!
  echo "ended $? cut $wait"
  send "cut $wait" /out
  run "held cut $wait" held
  cat /sys/kernel/tracing/trace > /trace
  send "trace cut $wait" /trace
done
finish

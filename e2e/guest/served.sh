#!/bin/busybox sh
# The first process of a guest whose disk and DMA engine are served from outside. What is asked comes from the kernel's
# command line as served=WORD; answers go to the console, one line each, beginning with "@ ".
/bin/busybox mkdir -p /bin /sbin /usr/bin /usr/sbin /proc /sys /dev /tmp /mnt /etc
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
ln -sf /proc/mounts /etc/mtab
echo 1 > /proc/sys/kernel/printk
say() { echo "@ $*"; }
for word in $(cat /proc/cmdline); do
  case $word in served=*) task=${word#served=} ;; esac
done

say kernel "$(uname -r)"
for group in /sys/kernel/iommu_groups/*/devices/*; do
  test -e "$group" || continue
  group=${group#/sys/kernel/iommu_groups/}
  say group "${group%%/*}" "${group##*/}"
done
place=/lib/modules/$(uname -r)
mkdir -p "$place"
mv /modules/*.ko "$place"
depmod
if test "$task" != vfio; then
  # Part of the kernel itself, in newer ones.
  modprobe virtio_pci 2> /dev/null
  modprobe virtio_blk
  test -e /dev/vda || say no disk
fi

# The engine's registers: enabled through sysfs, then written as any driver would.
engine_on() {
  device=/sys/bus/pci/devices/0000:00:08.0
  echo 1 > "$device/enable"
  printf '\006' | dd of="$device/config" bs=1 seek=4 conv=notrunc 2> /dev/null
  base=$(head -n 1 "$device/resource")
  base=${base%% *}
}
# engine_write IOVA: four bytes of its buffer go to IOVA.
engine_write() {
  devmem $((base + 0x80)) 64 0x40000
  devmem $((base + 0x88)) 64 "$1"
  devmem $((base + 0x90)) 64 4
  devmem $((base + 0x98)) 64 3
}

# A file system on the disk, with a file whose contents are known outside.
file_system() {
  /e2fs/ld-linux-x86-64.so.2 --library-path /e2fs /e2fs/mke2fs -q -t ext4 -F /dev/vda && say made
  mount -t ext4 /dev/vda /mnt && say mounted
  cp /contents /mnt/contents
  i=0
  while test $i -lt 64; do
    echo "file $i" > "/mnt/small$i"
    i=$((i + 1))
  done
  sync
  umount /mnt
  echo 3 > /proc/sys/vm/drop_caches
  mount -t ext4 /dev/vda /mnt
  cmp /contents /mnt/contents && say same
  umount /mnt
}

# Blocks one after the other, each said once it is on the disk.
blocks() {
  i=0
  while test $i -lt 4096; do
    if printf 'block %010d' $i | dd of=/dev/vda bs=4096 seek=$i conv=sync,fsync 2> /dev/null; then
      say wrote $i
    else
      say error $i
    fi
    i=$((i + 1))
  done
}

# A DMA that nothing maps.
stray() {
  say interrupts "$(grep DMAR-MSI /proc/interrupts | tr -s ' ')"
  engine_on
  engine_write 0x12345000
  sleep 1
  say interrupts "$(grep DMAR-MSI /proc/interrupts | tr -s ' ')"
}

# Both functions on vfio-pci, driven by a program. Interrupts are not remapped here, which VFIO has to be told to accept.
assigned() {
  modprobe vfio_iommu_type1 allow_unsafe_interrupts=1
  modprobe vfio-pci
  for function in 0000:00:07.0 0000:00:08.0; do
    echo vfio-pci > /sys/bus/pci/devices/$function/driver_override
    driver=/sys/bus/pci/devices/$function/driver
    test -e $driver && echo $function > $driver/unbind
    echo $function > /sys/bus/pci/drivers_probe
  done
  vfio-guest disk 0000:00:07.0 > /tmp/disk 2>&1
  say disk ended $?
  while read -r line; do say "disk $line"; done < /tmp/disk
  vfio-guest probe 0000:00:08.0 > /tmp/probe 2>&1
  say probe ended $?
  while read -r line; do say "$line"; done < /tmp/probe
}

# links: the two disks by name.
links() {
  for name in behind:7 beside:9; do
    for disk in /sys/bus/pci/devices/0000:00:0${name#*:}.0/virtio*/block/*; do
      ln -sf "/dev/${disk##*/}" "/tmp/${name%:*}"
    done
  done
}
# domain TYPE: what the driver does with the buffers of the disk behind the unit.
domain() { echo "$1" > /sys/bus/pci/devices/0000:00:07.0/iommu_group/type; }
# bursts SLICES: reads of the disk behind the unit and of its twin beside it, in turn. The reader's memory is one piece
# for the devices, so that a request has the same few mappings each time.
bursts() {
  say domain "$(cat /sys/bus/pci/devices/0000:00:07.0/iommu_group/type)"
  for order in sequential random; do
    for size in 4096:50 262144:16; do
      say burst $order ${size%:*} ${size#*:} "$1"
      vfio-guest blocks $order ${size%:*} ${size#*:} "$1" /tmp/behind /tmp/beside || say failed
    done
  done
}

case $task in
  vfio) assigned ;;
  all)
    file_system
    stray
    ;;
  disk) file_system ;;
  corrupt)
    dd if=/dev/vda of=/dev/null bs=4k count=16 iflag=direct 2> /dev/null && say read
    say ready
    # From here on the tables are broken from outside. Large reads use more pages than a small unit remembers.
    sleep 2
    dd if=/dev/vda of=/dev/null bs=256k count=16 iflag=direct 2> /dev/null &
    sleep 3
    ;;
  write) blocks ;;
  sockets)
    # The disk is written and the engine does what it may not, each by a process of its own: one may lose its device.
    engine_on
    blocks &
    while true; do
      engine_write 0x12345000
      say engine "$(devmem "$base" 32)"
      usleep 200000
    done
    ;;
  speed)
    # Small guests do without large pages unless told.
    echo always > /sys/kernel/mm/transparent_hugepage/enabled
    links
    bursts 100
    domain DMA-FQ
    bursts 300
    # Anything else needs a disk without a driver.
    echo 0000:00:07.0 > /sys/bus/pci/drivers/virtio-pci/unbind
    domain identity
    echo 0000:00:07.0 > /sys/bus/pci/drivers/virtio-pci/bind
    links
    bursts 200
    ;;
esac
dmesg | grep -e DMAR -e IOMMU -e iommu > /tmp/log
while read -r line; do say log "$line"; done < /tmp/log
say end
poweroff -f

#!/bin/sh
# The first process of a guest. What follows it in the same file asks the questions; `finish` ends the guest.
# The answers go to the console, in the form that `e2e::guest::record` reads.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
# From here on only this script writes to the console.
echo 1 > /proc/sys/kernel/printk
if test -d /modules; then
  place=/lib/modules/$(uname -r)
  mkdir -p "$place"
  mv /modules/*.ko "$place"
  depmod
fi

# Sends a file: send NAME PATH. A name may have spaces.
send() {
  echo "file $1"
  gzip -c "$2" | base64
  echo "."
}

# Runs a command, sends what it prints, and tells how it ended: run NAME COMMAND...
run() {
  name=$1
  shift
  "$@" > /out 2> /err
  echo "ended $? $name"
  send "$name" /out
  if test -s /err; then
    send "$name.err" /err
  fi
}

# Sends the bytes of a file as a dump, which is short where bytes repeat: bytes PATH
bytes() {
  hexdump -e '"%05_ax" 16/1 " %02x" "\n"' -e '"%05_Ax\n"' "$1"
}

# What every record starts with.
facts() {
  echo "kernel $(cat /proc/sys/kernel/osrelease)"
  for r in /sys/devices/pci*; do
    echo "root ${r#/sys/devices/pci}"
  done
  for g in /sys/kernel/iommu_groups/*/devices/*; do
    test -e "$g" || continue
    g=${g#/sys/kernel/iommu_groups/}
    echo "group ${g%%/*} ${g##*/}"
  done
  if test -e /sys/firmware/acpi/tables/DMAR; then
    echo "table DMAR"
    bytes /sys/firmware/acpi/tables/DMAR
  fi
}

# What every record ends with.
finish() {
  echo "messages"
  dmesg | grep -e DMAR -e IOMMU -e "correcting type" -e vfio
  echo "== end"
  poweroff -f
}

echo "== record"

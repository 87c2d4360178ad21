#!/bin/busybox sh
# Process 1 of the guest until its root disk is there.
# Busybox's shell finds its own commands once it can find itself, through /proc.
/bin/busybox mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

stop() {
    echo "L2-RESULT failed: $*"
    poweroff -f
}

for module in virtio_pci virtio_blk virtio_rng; do
    modprobe $module || stop "the kernel module $module does not load"
done
tries=0
while [ ! -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || stop "no /dev/vda within 20 s: the guest does not see its virtio-blk device"
    usleep 100000
done
mount -t ext4 /dev/vda /root || stop "/dev/vda has no ext4 file system"
mount --move /sys /root/sys
mount --move /dev /root/dev
/bin/busybox mount --move /proc /root/proc
exec /bin/busybox switch_root /root /sbin/init

#!/bin/busybox sh
# Process 1 of the outer machine: makes it usable, runs the job, sends back what is in /out.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin HOME=/lab

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
ip link set lo up
# The console is for results; the kernel's words go into l1-dmesg.log.
dmesg -n 1
modprobe -a virtio_pci virtio_console || echo "LAB no virtio_console: nothing of /out comes back"
modprobe kvm_amd || echo "LAB no kvm_amd: there is no /dev/kvm in here"

read -r up _ </proc/uptime
echo "LAB up after $up s: kernel $(uname -r), $(grep -c ^processor /proc/cpuinfo) CPU, /dev/kvm $([ -c /dev/kvm ] && echo present || echo absent)"

cd /lab
./run
status=$?

dmesg >/out/l1-dmesg.log
for port in /sys/class/virtio-ports/*; do
    if [ "$(cat "$port/name")" = lab.results ]; then
        tar -C /out -cf - . >"/dev/${port##*/}"
    fi
done
# At the start of a line, whatever the job wrote last.
printf '\nLAB-EXIT %s\n' $status
poweroff -f

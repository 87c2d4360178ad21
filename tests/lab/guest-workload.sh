#!/bin/busybox sh
# The guest's life, as process 1 on its own disk: tick, write, add up and draw random bytes until the
# mailbox says STOP; then look at everything once more. A handover must not show in any of it.
# Busybox's shell finds its own commands, so there are no links to make.
mount -o remount,rw /
mount -t tmpfs tmp /tmp
export PATH=/bin:/sbin
modulus=4294967296
# Of 16 KiB each: the writer goes round in the first 8 MiB of the blob.
blocks=512
# Of 4 KiB each, on a disk that is passed through.
passed_blocks=1024

fault() {
    echo "L2-FAULT $*"
    echo "$*" >>/tmp/faults
}

# Record N holds a number that only N gives, so a lost, doubled or torn record shows.
record() {
    echo "$1 $(($1 * 2654435761 % modulus))"
}

# Numbered records and blocks of the blob, each on the disk before the next one.
write_records() {
    n=0
    while [ ! -e /tmp/stop ]; do
        n=$((n + 1))
        record $n >>/data/records && sync /data/records || fault "record $n was not written"
        at=$(((n - 1) % blocks))
        dd if=/tmp/blob of=/data/blocks bs=16k count=1 skip=$at seek=$at conv=notrunc,fsync 2>/dev/null ||
            fault "block $at was not written"
        echo $n >/tmp/records.count
        usleep 50000
    done
    touch /tmp/records.done
}

# The sum of memory that nothing changes.
add_up() {
    n=0
    while [ ! -e /tmp/stop ]; do
        now=$(md5sum </tmp/blob)
        [ "$now" = "$sum" ] || fault "pass $n over unchanged memory gave $now, before it was $sum"
        n=$((n + 1))
        echo $n >/tmp/sums.count
        usleep 300000
    done
    touch /tmp/sums.done
}

draw() {
    n=0
    last=
    while [ ! -e /tmp/stop ]; do
        bytes=$(timeout 30 dd if=/dev/hwrng bs=16 count=1 2>/dev/null | hexdump -v -e '1/1 "%02x"')
        [ ${#bytes} = 32 ] || fault "/dev/hwrng gave no 16 bytes within 30 s but '$bytes'"
        [ "$bytes" != "$last" ] || fault "/dev/hwrng gave $bytes twice"
        last=$bytes
        n=$((n + 1))
        echo $n >/tmp/draws.count
        usleep 200000
    done
    touch /tmp/draws.done
}

# Which entropy devices there are, when that changes; the newest one is used.
watch_rngs() {
    folder=/sys/class/misc/hw_random
    seen=
    while [ ! -e /tmp/stop ]; do
        rngs=$(cat $folder/rng_available 2>/dev/null)
        rngs=${rngs% none}
        if [ "$rngs" != "$seen" ]; then
            seen=$rngs
            newest=${rngs##* }
            [ "$newest" = virtio_rng.0 ] && echo "rngs virtio_rng.0 only"
            if [ -n "$newest" ] && [ "$newest" != virtio_rng.0 ]; then
                echo "$newest" >$folder/rng_current || fault "$newest cannot be used"
                echo "rngs virtio_rng.0 $newest, in use: $(cat $folder/rng_current)"
            fi
        fi
        usleep 200000
    done
}

# A second disk that comes and goes: blocks of the blob go to it until the mailbox says REST, and then
# all that was written is read back.
use_second_disk() {
    while [ ! -e /tmp/stop ]; do
        if [ ! -b /dev/vdb ]; then
            usleep 200000
            continue
        fi
        echo "disk came"
        n=0
        until [ "$(second_word)" = REST ]; do
            at=$((n % blocks))
            dd if=/tmp/blob of=/dev/vdb bs=16k count=1 skip=$at seek=$at conv=notrunc,fsync 2>/dev/null ||
                fault "block $at was not written to the second disk"
            n=$((n + 1))
            [ $((n % 20)) = 0 ] && echo "disk wrote $n blocks"
        done
        count=$((n < blocks ? n : blocks))
        head -c $((count * 16384)) /tmp/blob >/tmp/expected
        dd if=/dev/vdb bs=16k count=$count iflag=direct 2>/dev/null | cmp - /tmp/expected ||
            fault "the blocks on the second disk are not what was written"
        echo "disk rests after $n blocks"
        while [ -b /dev/vdb ]; do
            usleep 200000
        done
        echo "disk left"
    done
}

# Block N for the disk that is passed through: 4 KiB that only N gives.
passed_block() {
    text="block $((1000000000 + $1)) $((10000000000 + $1 * 2654435761 % modulus)) lab"
    for _ in 1 2 3 4 5 6 7; do
        text=$text$text
    done
}

# How often that disk's queues have interrupted since the guest last woke: then they are set up anew.
passed_interrupts() {
    count=0
    while read -r _ number _ line; do
        case $line in
        *nvme*q[1-9]*) count=$((count + number)) ;;
        esac
    done </proc/interrupts
    echo $count
}

# A disk that the host has passed through, told by its serial number: numbered blocks go to it, and each
# is read back from it.
use_passed_disk() {
    disk=
    until [ -b "$disk" ]; do
        [ ! -e /tmp/stop ] || return
        for controller in /sys/class/nvme/*; do
            [ -e "$controller/serial" ] && read -r serial <"$controller/serial" &&
                [ "$serial" = baton-lab ] && disk=/dev/${controller##*/}n1
        done
        usleep 200000
    done
    echo "$disk" >/tmp/passed.found
    word=$(dd if="$disk" bs=4096 count=1 iflag=direct 2>/dev/null | head -c 25)
    [ "$word" = "baton lab: passed through" ] || fault "the passed-through disk begins with '$word'"
    n=0
    total=0
    still=0
    interrupts=$(passed_interrupts)
    while [ ! -e /tmp/stop ]; do
        n=$((n + 1))
        at=$((1 + (n - 1) % passed_blocks))
        passed_block $n
        printf %s "$text" | dd of="$disk" bs=4096 seek=$at count=1 oflag=direct conv=notrunc,fsync 2>/dev/null ||
            fault "block $n was not written to the passed-through disk"
        [ "$(dd if="$disk" bs=4096 skip=$at count=1 iflag=direct 2>/dev/null)" = "$text" ] ||
            fault "block $n on the passed-through disk is not what was written"
        echo $n >/tmp/passed.count
        if [ $((n % 10)) = 0 ]; then
            before=$interrupts
            interrupts=$(passed_interrupts)
            more=$((interrupts < before ? interrupts : interrupts - before))
            total=$((total + more))
            if [ $more -gt 0 ]; then
                still=0
                echo "passed disk holds $n blocks after $total interrupts"
                echo $total >/tmp/passed.interrupts
            else
                # Set up anew, they may have come to the same number once.
                still=$((still + 1))
                [ $still = 1 ] || fault "the passed-through disk does not interrupt any more after $total times"
            fi
        fi
        usleep 50000
    done
    touch /tmp/passed.done
}

# All of it once more, as the last round left it.
verify_passed_disk() {
    read -r disk </tmp/passed.found
    read -r n </tmp/passed.count
    count=$((n < passed_blocks ? n : passed_blocks))
    at=0
    while [ $at -lt $count ]; do
        at=$((at + 1))
        passed_block $((at + (n - at) / passed_blocks * passed_blocks))
        printf %s "$text"
    done >/tmp/expected
    dd if="$disk" bs=4096 skip=1 count=$count iflag=direct 2>/dev/null | cmp - /tmp/expected ||
        fault "the blocks on the passed-through disk are not what was written"
}

# The guest agent, once the machine has its port. The link is what udev makes of the port's name.
serve_agent() {
    port=org.qemu.guest_agent.0
    mkdir -p /dev/virtio-ports
    while [ ! -e /tmp/stop ]; do
        for candidate in /sys/class/virtio-ports/*; do
            [ -e "$candidate/name" ] && read -r name <"$candidate/name" && [ "$name" = $port ] || continue
            ln -sf "/dev/${candidate##*/}" /dev/virtio-ports/$port
            echo "guest agent starts"
            qemu-ga -m virtio-serial -p /dev/virtio-ports/$port -t /tmp
            echo "guest agent ended with status $?"
        done
        usleep 200000
    done
}

second_word() {
    dd if=/dev/vda bs=4096 skip=8192 count=1 iflag=direct 2>/dev/null | head -c 12 | tail -c 4
}

# Comes back when the guest has been woken.
sleep_in_ram() {
    echo mem >/sys/power/state || fault "the guest does not suspend itself at '$1'"
}

# Past the cache: what the host left there, not what was there before. A word counts once.
read_mailbox() {
    last=
    while :; do
        word=$(dd if=/dev/vda bs=4096 skip=8192 count=1 iflag=direct 2>/dev/null | head -c 8)
        case $word in
        STOP) break ;;
        "$last") ;;
        MEM*) sleep_in_ram "$word" ;;
        NAP*)
            echo 0 >/sys/class/rtc/rtc0/wakealarm
            echo +10 >/sys/class/rtc/rtc0/wakealarm || fault "the clock takes no alarm"
            sleep_in_ram "$word"
            ;;
        esac
        last=$word
        usleep 300000
    done
    touch /tmp/stop
}

finish() {
    tries=0
    workers="records sums draws"
    [ -e /tmp/passed.found ] && workers="$workers passed"
    for worker in $workers; do
        while [ ! -e /tmp/$worker.done ]; do
            tries=$((tries + 1))
            if [ $tries -gt 600 ]; then
                fault "the worker '$worker' did not come back within 60 s"
                return
            fi
            usleep 100000
        done
    done
    sync
    echo 3 >/proc/sys/vm/drop_caches

    expected=0
    while read -r line; do
        expected=$((expected + 1))
        [ "$line" = "$(record $expected)" ] || fault "record $expected on the disk reads '$line'"
    done </data/records
    read -r written </tmp/records.count
    [ $expected = "$written" ] || fault "$written records were written, $expected are on the disk"

    size=$((written < blocks ? written * 16384 : blocks * 16384))
    head -c $size /tmp/blob | cmp - /data/blocks || fault "the blocks on the disk are not what was written"
    [ ! -e /tmp/passed.found ] || verify_passed_disk
}

read -r up _ </proc/uptime
echo "L2 up after $up s: kernel $(uname -r), $(date -u '+%Y-%m-%d %H:%M') by its clock"
dd if=/dev/urandom of=/tmp/blob bs=1M count=32 2>/dev/null
sum=$(md5sum </tmp/blob)
write_records &
add_up &
draw &
read_mailbox &
watch_rngs &
use_second_disk &
use_passed_disk &
[ -e /sbin/qemu-ga ] && serve_agent &

tick=0
while [ ! -e /tmp/stop ]; do
    tick=$((tick + 1))
    read -r up _ </proc/uptime
    echo "tick $tick $up $EPOCHREALTIME"
    usleep 100000
done
finish

if [ -e /tmp/faults ]; then
    result="failed: $(head -n 1 /tmp/faults)"
else
    result="ok records=$(cat /tmp/records.count) sums=$(cat /tmp/sums.count) draws=$(cat /tmp/draws.count)"
    [ -e /tmp/passed.found ] &&
        result="$result nvme=$(cat /tmp/passed.count) nvme_interrupts=$(cat /tmp/passed.interrupts)"
fi
mount -o remount,ro / || result="failed: the root does not become read-only"
echo "L2-RESULT $result"
poweroff -f

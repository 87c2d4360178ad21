#!/bin/busybox sh
# The guest's life, as process 1 on its own disk: tick, write, add up and draw random bytes until the
# mailbox says STOP; then look at everything once more. A handover must not show in any of it.
# Busybox's shell finds its own commands, so there are no links to make.
mount -o remount,rw /
mount -t tmpfs tmp /tmp
modulus=4294967296
# Of 16 KiB each: the writer goes round in the first 8 MiB of the blob.
blocks=512

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
    for worker in records sums draws; do
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
fi
mount -o remount,ro / || result="failed: the root does not become read-only"
echo "L2-RESULT $result"
poweroff -f

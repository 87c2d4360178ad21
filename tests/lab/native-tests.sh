#!/bin/sh
# In L1: the examples of QEMU's CPR document with the test guest, which has a disk of L1's by VFIO in
# example 2.
BATON_TEST_VFIO=$(./xtask lab-agent passthrough) || exit 1
BATON_TEST_GUEST=/lab/guest.elf BATON_BIN=/lab/vmm BATON_PLUGINS=/lab/plugins
export BATON_TEST_VFIO BATON_TEST_GUEST BATON_BIN BATON_PLUGINS
./native document::cpr_ --nocapture --test-threads 1 >/out/native.log 2>&1
status=$?
cat /out/native.log
grep -q '^SKIPPED' /out/native.log && exit 1
exit $status

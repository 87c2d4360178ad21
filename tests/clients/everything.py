"""QEMU's client library against a monitor: every query, events, descriptors.

Arguments: the socket, and a file to pass. Prints one line of JSON.
"""

import asyncio
import json
import os
import sys

from qemu.qmp import ExecuteError, QMPClient

# Queries of one thing, which must be named.
NEED = {
    "qom-get": {"path": "/machine", "property": "type"},
    "qom-list": {"path": "/"},
    "qom-list-properties": {"typename": "memory-backend-memfd"},
    "device-list-properties": {"typename": "virtio-rng-pci"},
}


async def every_query(qmp):
    """The results of all commands that only ask."""
    names = [row["name"] for row in await qmp.execute("query-commands")]
    asks = [n for n in names if n.startswith("query-") or n in NEED or n == "qom-list-types"]
    return {name: await qmp.execute(name, NEED.get(name, {})) for name in asks}


async def stop_and_go(qmp):
    """The events of a guest that is stopped and goes on."""
    heard = []
    with qmp.listener(("STOP", "RESUME")) as events:
        await qmp.execute("stop")
        await qmp.execute("cont")
        while len(heard) < 2:
            heard.append((await events.get())["event"])
    return heard


async def pass_file(qmp, path):
    """What becomes of a file that is passed."""
    file = os.open(path, os.O_RDWR)
    qmp.send_fd_scm(file)
    await qmp.execute("getfd", {"fdname": "mine"})
    await qmp.execute("closefd", {"fdname": "mine"})
    qmp.send_fd_scm(file)
    added = await qmp.execute("add-fd", {"opaque": "from python"})
    sets = await qmp.execute("query-fdsets")
    await qmp.execute("remove-fd", {"fdset-id": added["fdset-id"]})
    return {"added": added, "sets": sets, "left": await qmp.execute("query-fdsets")}


async def refusals(qmp):
    """Errors with their classes."""
    seen = []
    for name, arguments in (
        ("no-such-command", {}),
        ("stop", {"now": True}),
        ("qom-list", {"path": "/nowhere"}),
        ("getfd", {"fdname": "none"}),
    ):
        try:
            await qmp.execute(name, arguments)
        except ExecuteError as error:
            seen.append([error.error_class, str(error)])
    return seen


async def main():
    """Everything, over one connection."""
    qmp = QMPClient("test")
    await qmp.connect(sys.argv[1])
    seen = {
        "greeting": qmp.greeting.QMP.version,
        "queries": await every_query(qmp),
        "events": await stop_and_go(qmp),
        "file": await pass_file(qmp, sys.argv[2]),
        "refusals": await refusals(qmp),
    }
    await qmp.disconnect()
    print(json.dumps(seen))


asyncio.run(main())

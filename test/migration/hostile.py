"""An honest destination, and a source that asks for more than its certificate and the destination's owner give it: c's daemon says what a case wants it to
say (test/faults/liar.cpp), and all else as it is. Each lie is refused for what it is, with the pod running on where it was and nothing left of it elsewhere.
So is a node that claims a label which it wasn't given."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import tempfile

from harness import BUILD, Case, Failure, wait_for
from migration import proc
from migration.cluster import Cluster, CommandError
from migration.users import ALICE, Users

LIAR = "c"
LABELS = {"b": ("secure",), LIAR: ("users=4000-4002", "capabilities=CHOWN,KILL")}
# What b's owner lets pods of c be.
PEERS = {"b": {LIAR: 'users = ["4000-4001"]\ncapabilities = ["CHOWN"]'}}
GROUPS = '\n[groups]\nrack = ["c", "a"]\n'
# Something of all that the lies are about: a file of its own, open and mapped; a device (its stdin). Its name changes all the time, so that a thread's settings
# are said again in the freeze.
PROGRAM = r"""
import ctypes, itertools, mmap, time
own = open("/tmp/mine", "w+b", buffering=0)
own.write(bytes(mmap.PAGESIZE))
shared = mmap.mmap(own.fileno(), mmap.PAGESIZE)
name = ctypes.CDLL(None).prctl
for number in itertools.count():
    name(15, b"%d" % number, 0, 0, 0)
    if number % 50 == 0:
        print(number, flush=True)
    time.sleep(0.0005)
"""
# What a pod could leave on a node. Number and name in each line.
COUNT = r"""
for comm in /proc/[0-9]*/comm; do cat $comm 2>/dev/null; done | grep -vx 'sh\|cat\|grep\|sort\|uniq' | sort | uniq -c
echo $(wc -l < /proc/self/mounts) mounts
echo $(ls /sys/class/net | wc -l) devices
echo $(find /var/lib/godwit/pods /run/godwit -xdev | wc -l) files
echo $(find $(grep cgroup2 /proc/self/mounts | cut -d' ' -f2 | head -1) -type d | wc -l) cgroups
stat -c '%a %u %s' /etc/shadow; ls -d /escaped /disk 2>/dev/null
"""
SYS_ADMIN, KILL = 1 << 21, 1 << 5
BLOCK_DEVICE = 0o60666


class Hostile(Users):
    name = "hostile"

    def cases(self):
        names = ("users", "capabilities", "room", "sender", "credentials-ahead", "credentials-in-the-freeze", "threads-without-state", "files-open", "files-mapped",
                 "places", "devices", "upper-layer", "labels", "labels-of-another")
        return [Case(name, getattr(self, "_" + name.replace("-", "_")), exclusive=True) for name in names]

    def setup(self):
        self.files = tempfile.TemporaryDirectory(dir=BUILD)
        wrapper = pathlib.Path(self.files.name) / "godwitd"
        wrapper.write_text(f'#!/bin/sh\ncase $(cat /etc/hostname) in\n{LIAR}) exec "{BUILD}/godwitd-faults" "$@";;\n*) exec "{BUILD}/godwitd" "$@";;\nesac\n')
        wrapper.chmod(0o755)
        self.cluster = Cluster("hostile", options=("--godwitd", wrapper))
        self.cluster.up()
        for node, labels in LABELS.items():
            words = [word for label in labels for word in ("--label", label)]
            token = self.cluster.godwit("a", "pki", "token", "--node", node, *words).stdout.strip()
            self.cluster.godwit(node, "join", "--again", "--token", token)
        self._plain = {node: self.cluster.exec(node, "cat", "/etc/godwit/godwitd.toml").stdout + GROUPS for node in self.cluster.nodes}
        for node in self.cluster.nodes:
            self._configure(node, PEERS.get(node))
        # As long as c doesn't lie, there is nothing against her pod.
        with self._pod():
            self.cluster.migrate("greedy", "b", node=LIAR)

    def teardown(self):
        self.cluster.down()
        self.files.cleanup()

    # ---- helpers

    def _file(self, name: str) -> pathlib.Path:
        return pathlib.Path(f"/proc/{self.cluster.host_pid(LIAR)}/root/run/godwit") / name

    @contextlib.contextmanager
    def _lies(self, *lies: str):
        """What c says meanwhile; all of it must have been said."""
        told = self._file("lie.told")
        told.unlink(missing_ok=True)
        self._file("lie.new").write_text("\n".join(lies) + "\n")
        os.rename(self._file("lie.new"), self._file("lie"))
        try:
            yield
        finally:
            self._file("lie").unlink()
        said = told.read_text().splitlines() if told.exists() else []
        if not set(lies) <= set(said):
            raise Failure(f"of {lies} were told {said}")

    @contextlib.contextmanager
    def _pod(self):
        self._as(ALICE, LIAR, "run", "--detach", "--name", "greedy", "--", "python3", "-uc", PROGRAM)
        try:
            self.cluster.wait_logs("greedy", "\n")
            yield
        finally:
            self.cluster.remove("greedy")

    def _left(self) -> str:
        return self.cluster.exec("b", "sh", "-c", COUNT, check=False).stdout

    def _goes_on(self, pod: str, node: str, before: list[int]) -> None:
        state = self.cluster.pod(pod)
        if state["node"] != node or state["state"] != "running" or self.cluster.processes(pod) != before:
            raise Failure(f"{pod} should run on {node}, with processes {before}, and does with {self.cluster.processes(pod)}: {state}")

    def _denied(self, lies: list[str], reason: str, reported: bool = True) -> None:
        """The pod is to go to b, and c tells these lies of it. `reported`: c is told why not."""
        cluster = self.cluster
        processes, left = cluster.processes("greedy"), self._left()
        begin = len(cluster.daemon_log("b", 100_000))
        try:
            with self._lies(*lies):
                cluster.migrate("greedy", "b", "precopy", node=LIAR)
        except CommandError as refusal:
            if reported and reason not in refusal.text:
                raise Failure(f"{lies}: {reason!r} is missing in the report: {refusal.text[-2000:]}") from None
        else:
            raise Failure(f"{lies}: believed")
        # That a migration has failed is noted when all of it is gone.
        wait_for(f"b to note {reason!r}", lambda: reason in cluster.daemon_log("b", 100_000)[begin:], 10)
        self._goes_on("greedy", LIAR, processes)
        written = len(cluster.logs("greedy"))
        wait_for("the pod to go on", lambda: len(cluster.logs("greedy")) > written, 10)
        try:
            wait_for("b to be as before", lambda: self._left() == left, 10)
        except Failure as failure:
            raise Failure(f"{lies}: {failure}:\n{left}-- became\n{self._left()}") from None
        told = json.loads(cluster.api("b", "GET", "/v1/node").read())
        if told["doubts"] or told["remainders"]:
            raise Failure(f"b says: {told}")

    # ---- what is agreed to before anything is built

    def _users(self) -> None:
        """c has asked for alice's pod, and says Hello with somebody else's."""
        with self._pod():
            self._denied(["hello .spec.user.uid = 0"], "the owner of b lets no pod of c run as root")
            other = ["hello .spec.user.uid = 4002", "hello .spec.user.gid = 4002"]
            self._denied(other, "the owner of b lets no pod of c run as 4002")
            nobody = ["hello .spec.user.uid = 4003", "hello .spec.user.gid = 4003"]
            self._denied(nobody, "the certificate of c lets none of its pods run as 4003")
            self._denied(["hello .spec.user.groups.0 = 0"], "it has groups that user 4001 hasn't on this node")

    def _capabilities(self) -> None:
        with self._pod():
            self._denied([f"hello .spec.capabilities = {SYS_ADMIN}"], "the certificate of c lets none of its pods have CAP_SYS_ADMIN")
            self._denied([f"hello .spec.capabilities = {KILL}"], "the owner of b lets no pod of c have CAP_KILL")

    def _room(self) -> None:
        """The exact needs are more than what was asked for."""
        with self._pod():
            self._denied([f"hello .resident = {1 << 40}"], "1048576 MiB of memory are needed")
            self._denied(["hello .spec.cpu_limit = 10000"], "it may use 10000 processors")

    def _sender(self) -> None:
        with self._pod():
            self._denied(["hello .from = a"], "c sends a pod in the name of a", reported=False)

    # ---- threads

    def _credentials_ahead(self) -> None:
        self._credentials("freezing .processes.0.threads.0.settings")

    def _credentials_in_the_freeze(self) -> None:
        self._credentials("state .processes.0.threads.0.settings")

    def _credentials(self, settings: str) -> None:
        with self._pod():
            for user in range(4):
                self._denied([f"{settings}.credentials.uids.{user} = 0"], "it runs as user 0 in a pod of user 4001")
            self._denied([f"{settings}.credentials.gids.3 = 0"], "it is in group 0, which user 4001 isn't")
            self._denied([f"{settings}.credentials.groups.0 = 0"], "it is in group 0, which user 4001 isn't")
            for which in ("permitted", "effective", "inheritable", "ambient", "bounding"):
                self._denied([f"{settings}.credentials.{which} = {SYS_ADMIN}"], "it may use CAP_SYS_ADMIN, which its pod may not")
            self._denied([f"{settings}.no_new_privileges = false"], "no_new_privs isn't set")

    def _threads_without_state(self) -> None:
        """One that nobody gives its credentials would keep those that it was made with: root's."""
        with self._pod():
            self._denied(["last .round.processes.0.threads.1 = 77"], "thread 77 comes without a state")
            pid = proc.inner_pid(self.cluster.processes("greedy")[0])
            self._denied(["state .processes.0 = gone"], f"process {pid} comes without a state")
            self._denied(["state .processes.0.threads.0 = gone"], f"process {pid} comes without a thread")

    # ---- paths and devices

    def _files_open(self) -> None:
        """No descriptor of what alice may not open at b."""
        with self._pod():
            self._denied(["objects .images.{kind=file}.state.path = /etc/shadow"], "user 4001 may not write /etc/shadow here")
            reading = ["objects .images.{kind=file}.state.path = /etc/shadow", "objects .images.{kind=file}.state.flags = 0"]
            self._denied(reading, "user 4001 may not read /etc/shadow here")

    def _files_mapped(self) -> None:
        """Nor is it mapped for her: neither shared nor, in the place of a library, as her own."""
        with self._pod():
            pid = self.cluster.processes("greedy")[0]
            library = next(line.split()[5] for line in open(f"/proc/{pid}/maps", encoding="utf-8") if "libc" in line)
            for place in (".processes.0.layout.{path=" + library + "}.path", ".objects.0.name"):
                self._denied([f"round {place} = /etc/shadow"], "user 4001 may not read /etc/shadow here")

    def _places(self) -> None:
        """Neither is a process put where she can't go, nor does it run what she can't."""
        state = "state .processes.0.process"
        self.cluster.exec("b", "sh", "-c", "mkdir -p -m 700 /var/tmp/closed && mkdir -p /var/tmp/closed/open && cp /bin/sleep /var/tmp/closed/open/")
        with self._pod():
            self._denied([f"{state}.cwd = /var/tmp/closed/open"], "user 4001 may not reach /var/tmp/closed/open here")
            self._denied([f"{state}.root = /var/tmp/closed/open"], "user 4001 may not reach /var/tmp/closed/open here")
            self._denied([f"{state}.exe = /var/tmp/closed/open/sleep"], "user 4001 may not read /var/tmp/closed/open/sleep here")

    def _devices(self) -> None:
        entry = "files .message.{path=tmp/mine}"
        with self._pod():
            self._denied([f"{entry}.mode = {BLOCK_DEVICE}", f"{entry}.device = {8 << 8}"], "tmp/mine: a device, which this pod has no right to make")
            self._denied(["objects .images.{kind=device}.state.major = 8"], "device 8:3 in an image")

    def _upper_layer(self) -> None:
        entry = "files .message.{path=tmp/mine}"
        with self._pod():
            self._denied([f"{entry}.path = ../escaped"], "a path that leads elsewhere")
            self._denied([f"{entry}.path = tmp/../../../escaped"], "a path that leads elsewhere")
            self._denied([f"{entry}.path = /escaped"], "a path that leads elsewhere")
            self._denied([f"{entry}.path = var/lib/godwit/escaped"], "in this node's state directory")
            self._denied([f"{entry}.fresh = false", f"{entry}.path = etc/shadow"], "etc/shadow: this node's own")

    # ---- a destination that lies

    def _labels(self) -> None:
        """c says yes to what it may not have."""
        self._claims("c", "c", "payroll is not taken: c hasn't the label secure")

    def _labels_of_another(self) -> None:
        """c says it in the name of another one of its group."""
        self._claims("rack", "a", "the certificate of node a hasn't the label secure")

    def _claims(self, to: str, named: str, reason: str) -> None:
        cluster = self.cluster
        cluster.run("b", "payroll", ["sleep", "1000"], "--needs", "secure")
        try:
            before = cluster.processes("payroll")
            with self._lies("answer .yes = true", f"answer .node = {named}", "answer .reason = ", "answer .text = ", "answer .labels.secure = "):
                self._refused(cluster.godwit("b", "migrate", "payroll", to, check=False), reason)
            self._goes_on("payroll", "b", before)
        finally:
            cluster.remove("payroll")

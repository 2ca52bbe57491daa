"""What can't move is refused by name before anything stops, and the pod doesn't notice."""

from __future__ import annotations

import json
import re
import time

from harness import Case, Failure, Skip, Suite
from migration import proc
from migration.cluster import Cluster, CommandError, Migration

# Opens something under number 77, goes on counting, and measures how long it ever stood still.
PROGRAM = """
import ctypes, os, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def syscall(*arguments):
    result = libc.syscall(*[ctypes.c_long(one) if isinstance(one, int) else one for one in arguments])
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def open_it(): return {opening}
def place(opened):
    number = opened if isinstance(opened, int) else opened.detach()
    if number != 77:
        os.dup2(number, 77)
        os.close(number)
waste = bytearray(os.urandom(1 << 20)) * {mib}
over = []
signal.signal(signal.SIGTERM, lambda *_: over.append(1))
signal.signal(signal.SIGUSR1, lambda *_: place(open_it()))
if not {late}: place(open_it())
print("ready", flush=True)
last, worst = time.monotonic(), 0
while not over:
    time.sleep(0.001)
    now = time.monotonic()
    worst, last = max(worst, now - last), now
print("stood still for at most %d ms" % (worst * 1000), flush=True)
"""

# How it is opened, and the word by which the refusal has to name it.
OBJECTS = {
    "inotify": ("libc.inotify_init1(0)", "inotify"),
    "fanotify": ("syscall(300, 0, 0)", "fanotify"),
    "netlink": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)", "netlink"),
    "packet": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)", "packet"),
    "raw-ip": ("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "raw"),
    "io-uring": ("syscall(425, 8, ctypes.create_string_buffer(256))", "io_uring"),
    "userfaultfd": ("syscall(323, 1)", "userfaultfd"),
    "perf-event": ("syscall(298, ctypes.create_string_buffer(struct.pack('IIQ', 1, 128, 0) + bytes(112)), 0, -1, -1, 0)", "perf"),
    "pidfd": ("os.pidfd_open(os.getpid())", "pidfd"),
    "mqueue": ("syscall(240, ctypes.c_char_p(b'queue'), 0o102, 0o600, None)", "mqueue"),
    "terminal": ("os.openpty()[0]", "pty|terminal|pts|ptmx"),
    "bpf-map": ("syscall(321, 0, ctypes.create_string_buffer(struct.pack('IIII', 2, 4, 8, 1) + bytes(112)), 128)", "bpf"),
}


class Refusals(Suite):
    name = "refusals"

    def cases(self):
        found = [Case(name, lambda name=name: self._object(name)) for name in OBJECTS]
        found += [Case("late", self._late), Case("unknown-node", lambda: self._place("nowhere", "nowhere")),
                  Case("same-node", lambda: self._place("a", r"\ba\b")), Case("unknown-strategy", self._strategy),
                  Case("unknown-pod", self._unknown_pod), Case("unreachable", self._unreachable, exclusive=True),
                  Case("daemon-away", self._daemon_away, exclusive=True), Case("another-file", self._other_file),
                  Case("short-of-memory", self._memory, exclusive=True)]
        return found

    def setup(self):
        self.cluster = Cluster("refusals")
        self.cluster.up()

    def teardown(self):
        self.cluster.down()

    # ---- helpers

    def _start(self, pod: str, opening: str, mib: int = 1, late: bool = False) -> None:
        program = PROGRAM.format(opening=opening, mib=mib, late=late)
        self.cluster.run("a", pod, ["python3", "-c", program])
        self.cluster.wait_logs(pod, "ready\n")

    def _refused(self, pod: str, to: str, *options) -> CommandError:
        try:
            report = self.cluster.migrate(pod, to, *options)
        except CommandError as refusal:
            return refusal
        raise Failure(f"not refused, moved: {report}")

    def _unharmed(self, pod: str, still_ms: int | None = 150) -> None:
        cluster = self.cluster
        state = cluster.pod(pod)
        if state["node"] != "a" or state["state"] != "running" or not self.cluster.alone(pod):
            raise Failure(f"the pod should run on as if nothing had been: {state}")
        if dead := cluster.heal():
            raise Failure(f"godwitd died on {dead}: {''.join(cluster.daemon_log(node) for node in dead)}")
        cluster.signal(pod, "TERM")
        if code := cluster.wait_exit(pod):
            raise Failure(f"it ended with {code}: {cluster.logs(pod)[-1000:]}")
        stood = int(re.search(r"at most (\d+) ms", cluster.logs(pod))[1])
        if still_ms is not None and stood > still_ms:
            raise Failure(f"it stood still for {stood} ms")

    def _must_name(self, refusal: CommandError, *words: str) -> None:
        for word in words:
            if not re.search(word, refusal.text, re.I):
                raise Failure(f"the refusal doesn't say {word!r}: {refusal.text}")

    # ---- objects

    def _object(self, name: str) -> None:
        opening, word = OBJECTS[name]
        cluster, pod = self.cluster, f"refused-{name}"
        try:
            try:
                self._start(pod, opening)
            except Failure as failure:
                if "OSError" in str(failure) or "PermissionError" in str(failure):
                    raise Skip(f"this kernel gives no {name}: {str(failure).strip().splitlines()[-1]}") from None
                raise
            before = proc.snapshot(cluster.processes(pod))
            try:
                cluster.migrate(pod, "b", "precopy")
            except CommandError as refusal:
                self._must_name(refusal, word, r"\b77\b", rf"\b{min(before)}\b")
                dry = cluster.godwit("a", "migrate", pod, "b", "--dry-run", "--json", check=False)
                if not re.search(word, dry.stdout + dry.stderr, re.I):
                    raise Failure(f"the dry run doesn't say so: {dry.stdout}{dry.stderr}") from None
                self._unharmed(pod)
                return
            cluster.drained(pod, "b")
            if found := proc.differences(before, proc.snapshot(cluster.processes(pod)), ["maps"]):
                raise Failure("moved, but not whole:\n" + "\n".join(found))
            raise Skip("moves: there is nothing to refuse")
        finally:
            cluster.remove(pod)

    def _late(self) -> None:
        cluster, pod = self.cluster, "refused-late"
        try:
            self._start(pod, OBJECTS["inotify"][0], mib=60, late=True)
            cluster.link("b", "rate=200mbit")
            moving = Migration(cluster, pod, "b", "precopy")
            moving.wait_phase("precopy")
            cluster.signal(pod, "USR1")
            last = moving.finish()
            if "error" not in last:
                raise Failure(f"moved: {last}")
            if "inotify" not in json.dumps(last):
                raise Failure(f"the late refusal doesn't name it: {last}")
            if not last.get("report", {}).get("pauses_us"):
                raise Failure(f"the report doesn't say what the late refusal cost: {last}")
            self._unharmed(pod, still_ms=None)
        finally:
            cluster.link("b", "rate=none")
            cluster.remove(pod)

    # ---- places

    def _place(self, to: str, word: str) -> None:
        pod = f"to-{to}"
        try:
            self._start(pod, "os.open('/dev/null', 0)")
            self._must_name(self._refused(pod, to), word)
            self._unharmed(pod)
        finally:
            self.cluster.remove(pod)

    def _strategy(self) -> None:
        pod = "by-magic"
        try:
            self._start(pod, "os.open('/dev/null', 0)")
            self._must_name(self._refused(pod, "b", "magic"), "magic")
            self._unharmed(pod)
        finally:
            self.cluster.remove(pod)

    def _unknown_pod(self) -> None:
        self._must_name(self._refused("nobody", "b"), "nobody")

    def _unreachable(self) -> None:
        pod, cluster = "to-the-moon", self.cluster
        try:
            self._start(pod, "os.open('/dev/null', 0)")
            cluster.link("c", "down")
            begin = time.monotonic()
            self._must_name(self._refused(pod, "c"), r"\bc\b")
            if time.monotonic() - begin > 30:
                raise Failure(f"it took {time.monotonic() - begin:.0f} s to say that the node can't be reached")
            cluster.link("c", "up")
            self._unharmed(pod)
        finally:
            cluster.link("c", "up")
            cluster.remove(pod)

    def _daemon_away(self) -> None:
        pod, cluster = "to-the-deaf", self.cluster
        try:
            self._start(pod, "os.open('/dev/null', 0)")
            cluster.daemon("stop", "c")
            self._must_name(self._refused(pod, "c"), r"\bc\b")
            cluster.daemon("start", "c")
            self._unharmed(pod)
        finally:
            cluster.daemon("start", "c")
            cluster.remove(pod)

    def _other_file(self) -> None:
        pod, cluster = "other-file", self.cluster
        try:
            for node, text in (("a", "one"), ("b", "another")):
                cluster.exec(node, "sh", "-c", f"echo {text} > /etc/godwit-other")
            self._start(pod, "os.open('/etc/godwit-other', 0)")
            self._must_name(self._refused(pod, "b"), "/etc/godwit-other")
            self._unharmed(pod)
        finally:
            cluster.remove(pod)

    # ---- what a machine lacks

    def _memory(self) -> None:
        if not self.options.long:
            raise Skip("fills half of this machine's memory: only with --long")
        available = int(re.search(r"MemAvailable:\s+(\d+)", open("/proc/meminfo").read())[1]) // 1024
        pod, cluster = "too-big", self.cluster
        try:
            self._start(pod, "os.open('/dev/null', 0)", mib=int(available * 0.55))
            self._must_name(self._refused(pod, "b", "precopy"), "memory")
            self._unharmed(pod)
        finally:
            cluster.remove(pod)

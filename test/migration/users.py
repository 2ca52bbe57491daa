"""Whose a pod is, who may do what with it, and that no image gets more than its sender may have here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

from harness import Case, Failure, Suite, expect, wait_for
from migration.cluster import STRATEGIES, Cluster, CommandError

CONFIG = "/etc/godwit/godwitd.toml"
ALICE, BOB, EVE = (4001, (4001, 4100)), (4002, (4002,)), (4003, (4003,))
# Says what it is and may, again and again: moved, each line must be as the first was.
WITNESS = r"""
import json, os, socket, sys, time
own = open("/tmp/of-mine", "w+")
os.chmod("/tmp/of-mine", 0)
own.write("kept"), own.flush()
left, right = socket.socketpair()
while True:
    status = dict(line.rstrip("\n").split(":", 1) for line in open("/proc/self/status"))
    facts = {name: status[name].split() for name in ("Uid", "Gid", "Groups", "CapPrm", "CapBnd", "NoNewPrivs")}
    own.seek(0)
    facts["own"] = own.read()
    left.send(b"x"), right.recv(1)
    try:
        open("/etc/shadow").close()
        facts["shadow"] = True
    except PermissionError:
        facts["shadow"] = False
    with open("/proc/self/fd/1", "a") as again:
        again.write(json.dumps(facts) + "\n")
    time.sleep(0.03)
"""


class Users(Suite):
    name = "users"

    def cases(self):
        names = ("own-pods", "moves-as-a-user", "exec", "terminal", "roots-pod-with-fewer", "no-way-out", "no-way-to-root", "strange-thread", "files-of-others",
                 "send", "receive", "peer-users", "peer-capabilities", "daemon-keeps-few")
        return [Case(name, getattr(self, "_" + name.replace("-", "_")), exclusive=True) for name in names]

    def setup(self):
        self.cluster = Cluster("users")
        self.cluster.up()
        self._plain = {node: self.cluster.exec(node, "cat", CONFIG).stdout for node in self.cluster.nodes}
        for node in self.cluster.nodes:
            self._configure(node)

    def teardown(self):
        self.cluster.down()

    # ---- helpers

    def _configure(self, node: str, peers: dict[str, str] | None = None) -> None:
        """With alice and bob as users, and per peer other lines of the config than the defaults."""
        text = self._plain[node].replace("mode = '0600'", "mode = '0666'").replace("run = []", 'run = ["4001", "@4002"]')
        for peer, lines in (peers or {}).items():
            text = text.replace(f"name = '{peer}'\n", f"name = '{peer}'\n{lines}\n")
        self.cluster.exec(node, "sh", "-c", f"cat > {CONFIG}", input=text)
        self.cluster.daemon("stop", node)
        self.cluster.daemon("start", node)

    def _as(self, who, node: str, *words, check: bool = True):
        uid, groups = who
        # Opened by root: wherever the command lies, its users may run it.
        run = f'exec 9<"$(command -v godwit)"; exec setpriv --reuid {uid} --regid {groups[0]} --groups {",".join(map(str, groups))} /proc/self/fd/9 "$@"'
        return self.cluster.exec(node, "sh", "-c", run, "godwit", *words, check=check)

    def _refused(self, done, *words: str) -> None:
        said = done.stdout + done.stderr
        if done.returncode == 0 or any(word not in said for word in words):
            raise Failure(f"exit code {done.returncode}, and one of {words} is missing in: {said}")

    def _names(self, who, node: str) -> set[str]:
        return {pod["name"] for pod in json.loads(self._as(who, node, "ps", "--json").stdout)}

    def _facts(self, pod: str) -> list[dict]:
        lines = self.cluster.logs(pod).splitlines()
        return [json.loads(line) for line in lines]

    def _sleeper(self, who, pod: str, node: str = "a", *options: str) -> None:
        self._as(who, node, "run", "--detach", "--name", pod, *options, "--", "sleep", "1000")

    # ---- users

    def _own_pods(self) -> None:
        cluster = self.cluster
        self._sleeper(ALICE, "alices")
        self._sleeper(BOB, "bobs", "b")
        cluster.run("a", "roots", ["sleep", "1000"])
        try:
            self._refused(self._as(EVE, "a", "run", "--detach", "--", "true", check=False), "may not run pods on a", "[users]")
            self._refused(self._as(ALICE, "a", "run", "--detach", "--user", "4002", "--", "true", check=False), "only root")
            for node in cluster.nodes:
                seen = self._names(ALICE, node), self._names(BOB, node), self._names(EVE, node)
                if seen != ({"alices"}, {"bobs"}, set()):
                    raise Failure(f"on {node} alice, bob and eve see {seen}")
            if not {"alices", "bobs", "roots"} <= set(cluster.pods()):
                raise Failure("root doesn't see all")
            for words in (("stop",), ("kill",), ("logs",), ("inspect",), ("rm", "--force"), ("exec",), ("migrate", "--dry-run")):
                more = {"exec": ["--", "true"], "migrate": ["c"]}.get(words[0], [])
                for node in ("a", "c"):
                    self._refused(self._as(BOB, node, *words, "alices", *more, check=False), "no pod of", "alices")
            for words in (("drain", "--only-close"), ("resolve", "alices", "--here"), ("nodes", "--forget", "b")):
                self._refused(self._as(ALICE, "a", *words, check=False), "only root may")
            # Her own, from any node; the history is hers alone.
            self._as(ALICE, "c", "migrate", "alices", "b")
            if cluster.pod("alices")["node"] != "b":
                raise Failure("alice's pod has not moved")
            cluster.migrate("roots", "b")
            moved = {who: {move["pod"] for move in json.loads(self._as(who, "c", "history", "--json").stdout)} for who in (ALICE, BOB)}
            if "alices" not in moved[ALICE] or "roots" in moved[ALICE] or "alices" in moved[BOB]:
                raise Failure(f"the history shows {moved}")
            self._as(ALICE, "a", "stop", "alices")
            self._as(ALICE, "a", "rm", "alices")
        finally:
            for pod in ("alices", "bobs", "roots"):
                cluster.remove(pod)

    def _moves_as_a_user(self) -> None:
        cluster = self.cluster
        self._as(ALICE, "a", "run", "--detach", "--name", "witness", "--", "python3", "-uc", WITNESS)
        try:
            cluster.wait_logs("witness", "\n")
            place = 0
            for strategy in STRATEGIES:
                place = (place + 1) % 3
                before = len(self._facts("witness"))
                cluster.migrate("witness", "abc"[place], strategy)
                cluster.drained("witness", "abc"[place])
                wait_for("the witness to go on", lambda before=before: len(self._facts("witness")) > before + 3, 20)
            facts = self._facts("witness")
            if any(fact != facts[0] for fact in facts):
                raise Failure(f"it was {facts[0]} and became {next(fact for fact in facts if fact != facts[0])}")
            wanted = {"Uid": ["4001"] * 4, "Gid": ["4001"] * 4, "CapPrm": ["0" * 16], "CapBnd": ["0" * 16], "NoNewPrivs": ["1"], "own": "kept",
                      "shadow": False}
            if not wanted.items() <= facts[0].items() or "4100" not in facts[0]["Groups"]:
                raise Failure(f"alice's pod is {facts[0]}")
        finally:
            cluster.remove("witness")

    def _exec(self) -> None:
        cluster = self.cluster
        self._sleeper(ALICE, "entered")
        try:
            cluster.migrate("entered", "b")
            for who in ("4001", "0"):
                # Root gets in as her, too: a pod holds its user and nobody else.
                done = self._as(ALICE, "c", "exec", "entered", "--", "id", "-u") if who != "0" else cluster.godwit("c", "exec", "entered", "--", "id", "-u")
                if done.stdout.strip() != "4001":
                    raise Failure(f"exec by {who} runs as {done.stdout!r}")
        finally:
            cluster.remove("entered")

    def _terminal(self) -> None:
        """A program can open its terminal and its streams again, which belong to its user, also after a move."""
        cluster = self.cluster
        self._as(ALICE, "a", "run", "--detach", "--terminal", "--name", "typed", "--", "sh", "-c",
                 "while :; do tty >/dev/tty; sleep 0.1; done")
        try:
            cluster.wait_logs("typed", "/dev/pts")
            cluster.migrate("typed", "b")
            before = len(cluster.logs("typed"))
            wait_for("more of its terminal", lambda: len(cluster.logs("typed")) > before + 20, 20)
            if "denied" in cluster.logs("typed"):
                raise Failure(cluster.logs("typed")[-500:])
        finally:
            cluster.remove("typed")

    def _roots_pod_with_fewer(self) -> None:
        cluster = self.cluster
        cluster.run("a", "fewer", ["python3", "-uc", WITNESS], "--capabilities", "CHOWN,CAP_KILL")
        try:
            cluster.wait_logs("fewer", "\n")
            cluster.migrate("fewer", "b")
            before = len(self._facts("fewer"))
            wait_for("the witness to go on", lambda: len(self._facts("fewer")) > before + 3, 20)
            facts = self._facts("fewer")
            if any(fact != facts[0] for fact in facts) or facts[0]["CapBnd"] != ["0000000000000021"] or facts[0]["CapPrm"] != ["0000000000000021"]:
                raise Failure(f"it is {facts[0]} and {facts[-1]}")
            # User 0 needs no capability to write the node's settings, where they can be written at all.
            writable = "import os; print([path for path in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/self/oom_score_adj') if os.access(path, os.W_OK)])"
            expect("what it may write", cluster.godwit("b", "exec", "fewer", "--", "python3", "-c", writable).stdout, "['/proc/self/oom_score_adj']\n")
        finally:
            cluster.remove("fewer")

    def _no_way_out(self) -> None:
        """What the pod's init holds of the node leads nowhere, not even those who may follow it: an image's names neither."""
        cluster = self.cluster
        climb = """
import json, os
found = {}
for number in os.listdir("/proc/1/fd"):
    way = "/proc/1/fd/" + number
    if os.path.isdir(way):
        here, above = os.stat(way), os.stat(way + "/..")
        found[os.readlink(way)] = (here.st_dev, here.st_ino) == (above.st_dev, above.st_ino)
print(json.dumps(found))
"""
        cluster.run("a", "climber", ["sleep", "1000"])
        try:
            for node in "ab":
                found = json.loads(cluster.godwit(node, "exec", "climber", "--", "python3", "-c", climb).stdout)
                if not found or not all(found.values()):
                    raise Failure(f"on {node} it gets above {found}")
                cluster.migrate("climber", "b" if node == "a" else "a")
        finally:
            cluster.remove("climber")

    # ---- what an image could try

    def _no_way_to_root(self) -> None:
        """Neither a set-user-id program of the node's nor one that came along makes a user root."""
        cluster = self.cluster
        self._sleeper(ALICE, "climber")
        try:
            made = "cp /bin/sleep /tmp/mine; chmod 6755 /tmp/mine; mknod /tmp/disk b 8 0 2>&1; unshare -m true 2>&1; su -c id 2>&1; true"
            self._as(ALICE, "a", "exec", "climber", "--", "sh", "-c", made)
            cluster.migrate("climber", "b")
            done = self._as(ALICE, "a", "exec", "climber", "--", "sh", "-c", "test ! -e /tmp/disk && stat -c %a%u /tmp/mine && cat /proc/self/status")
            if "67554001" not in done.stdout or "NoNewPrivs:\t1" not in done.stdout:
                raise Failure(done.stdout)
        finally:
            cluster.remove("climber")

    def _strange_thread(self) -> None:
        """A process in a user's pod that isn't the user's, put there from outside: a destination wouldn't believe it."""
        cluster = self.cluster
        self._sleeper(ALICE, "haunted")
        try:
            inside = cluster.processes("haunted")[0]
            cgroup = next(line.split(":", 2)[2] for line in open(f"/proc/{inside}/cgroup", encoding="utf-8").read().splitlines() if line.startswith("0::"))
            root = next(line.split()[1] for line in open("/proc/mounts", encoding="utf-8") if line.split()[2] == "cgroup2")
            # Its parent gone, it is the init's: one of the pod's like any other.
            enter = f"echo 0 > {root}{cgroup}/cgroup.procs && exec nsenter -t {inside} -m -p -n -i -u -- sh -c 'sleep 1000 </dev/null >/dev/null 2>&1 &'"
            subprocess.run(["sh", "-c", enter], check=True, timeout=10)
            (ghost,) = wait_for("the ghost to be there", lambda: set(cluster.processes("haunted")) - {inside}, 10)
            try:
                self._refused(cluster.godwit("a", "migrate", "haunted", "b", check=False), "which its pod may not")
            finally:
                os.kill(ghost, signal.SIGKILL)
            wait_for("the ghost to be gone", lambda: len(cluster.processes("haunted")) == 1, 10)
            cluster.migrate("haunted", "b")
        finally:
            cluster.remove("haunted")

    def _files_of_others(self) -> None:
        """A file that its user may read on one node and not on the other isn't opened for it there."""
        cluster = self.cluster
        for node, mode in (("a", "644"), ("b", "600"), ("c", "644")):
            cluster.exec(node, "sh", "-c", f"echo secret > /var/tmp/papers && chmod {mode} /var/tmp/papers && touch -d @1000000000 /var/tmp/papers")
        self._as(ALICE, "a", "run", "--detach", "--name", "reader", "--", "sh", "-c", "exec 5</var/tmp/papers; echo open; exec sleep 1000")
        try:
            cluster.wait_logs("reader", "open")
            self._refused(cluster.godwit("a", "migrate", "reader", "b", check=False), "may not read /var/tmp/papers")
            if (state := cluster.pod("reader"))["node"] != "a" or state["state"] != "running":
                raise Failure(f"it should run on: {state}")
            cluster.migrate("reader", "c")
        finally:
            cluster.remove("reader")

    # ---- what a node's owner allows its peers

    def _pods_stay(self, pod: str, to: str, *words: str, without: str | None = None) -> None:
        for strategy in ("auto", "freeze"):
            try:
                self.cluster.migrate(pod, to, strategy)
            except CommandError as refusal:
                if missing := [word for word in words if word not in refusal.text]:
                    raise Failure(f"{missing} missing in: {refusal.text}") from None
                if without and without in refusal.text:
                    raise Failure(f"{without!r} is in: {refusal.text}") from None
                continue
            raise Failure(f"{pod} was not refused")
        if (state := self.cluster.pod(pod))["node"] != "a" or state["state"] != "running":
            raise Failure(f"it should run on: {state}")

    def _send(self) -> None:
        self._sleeper(ALICE, "kept")
        try:
            self._configure("a", {"b": "send = false"})
            self._pods_stay("kept", "b", "the owner of a lets no pod go to b")
            self.cluster.migrate("kept", "any")
            if self.cluster.pod("kept")["node"] != "c":
                raise Failure("any was not c")
            # Nor is b named as a place that would take it.
            self.cluster.migrate("kept", "a")
            self.cluster.godwit("c", "drain", "--only-close")
            self._pods_stay("kept", "c", "c is being emptied", without="would take it")
        finally:
            self.cluster.godwit("c", "drain", "--undo")
            self._configure("a")
            self.cluster.remove("kept")

    def _receive(self) -> None:
        self._sleeper(ALICE, "unwanted")
        try:
            self._configure("b", {"a": "receive = false"})
            self._pods_stay("unwanted", "b", "the owner of b wants no pods of a", "c would take it")
        finally:
            self._configure("b")
            self.cluster.remove("unwanted")

    def _peer_users(self) -> None:
        cluster = self.cluster
        self._sleeper(ALICE, "alices")
        self._sleeper(BOB, "bobs")
        cluster.run("a", "roots", ["sleep", "1000"])
        self._sleeper(ALICE, "theirs", "b")
        try:
            self._configure("b", {"a": 'users = ["4000-4001"]'})
            self._pods_stay("roots", "b", "lets no pod of a run as root")
            self._pods_stay("bobs", "b", "lets no pod of a run as 4002")
            # Nor does b do what a asks in others' names.
            self._refused(cluster.godwit("a", "stop", "theirs", check=False), "in the name of user root")
            self._as(ALICE, "a", "stop", "theirs")
            cluster.migrate("alices", "b")
            self._as(ALICE, "a", "stop", "alices")
        finally:
            self._configure("b")
            for pod in ("alices", "bobs", "roots", "theirs"):
                cluster.remove(pod)

    def _peer_capabilities(self) -> None:
        cluster = self.cluster
        cluster.run("a", "mighty", ["sleep", "1000"])
        cluster.run("a", "meek", ["sleep", "1000"], "--capabilities", "CHOWN")
        try:
            self._configure("b", {"a": 'capabilities = ["CHOWN", "KILL"]'})
            self._pods_stay("mighty", "b", "lets no pod of a have", "CAP_SYS_ADMIN")
            cluster.migrate("meek", "b")
        finally:
            self._configure("b")
            cluster.remove("mighty")
            cluster.remove("meek")

    def _daemon_keeps_few(self) -> None:
        pid = self.cluster.exec("a", "pgrep", "-xo", "godwitd").stdout.strip()
        status = self.cluster.exec("a", "cat", f"/proc/{pid}/status").stdout
        sets = {name: int(value, 16) for name, value in re.findall(r"(Cap(?:Prm|Bnd|Eff)):\s*(\w+)", status)}
        module, boot, rawio, admin = 1 << 16, 1 << 22, 1 << 17, 1 << 21
        for name, value in sets.items():
            if value & (module | boot | rawio) or not value & admin:
                raise Failure(f"the daemon's {name} is {value:#x}")
        self.cluster.run("a", "plain", ["sleep", "1000"])
        try:
            inside = self.cluster.godwit("a", "exec", "plain", "--", "grep", "CapBnd", "/proc/self/status").stdout
            if int(inside.split()[1], 16) & ~sets["CapBnd"]:
                raise Failure(f"a pod has more than the daemon: {inside}")
        finally:
            self.cluster.remove("plain")

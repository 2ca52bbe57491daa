"""Who is a node: certificates of one authority, tokens that let new ones in, and what becomes of who is not one, or no longer."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time

from harness import Case, Failure, Suite, expect, wait_for
from migration.cluster import Cluster, CommandError

CONFIG = "/etc/godwit/godwitd.toml"
TLS = "/etc/godwit/tls"
# Counts for ever; a number that is missing, or there twice, is a process that was lost or ran twice.
COUNTER = ["python3", "-u", "-c", "import time\ni = 0\nwhile True:\n    i += 1\n    print(i)\n    time.sleep(0.02)"]


class Trust(Suite):
    name = "trust"

    def cases(self):
        names = ("join", "token-once", "no-certificate", "other-cluster", "plain-here", "plain-there", "expired", "expelled", "renewed-while-moving",
                 "labels", "users-by-certificate", "nobody-reads-along", "check", "check-privileges")
        return [Case(name, getattr(self, "_" + name.replace("-", "_")), exclusive=True) for name in names]

    def setup(self):
        self.cluster = Cluster("trust", nodes=4)
        self.cluster.up()
        self._plain = {node: self.cluster.exec(node, "cat", CONFIG).stdout for node in self.cluster.nodes}

    def teardown(self):
        self.cluster.down()

    # ---- helpers

    def _configure(self, node: str, text: str) -> None:
        self.cluster.exec(node, "sh", "-c", f"cat > {CONFIG}", input=text)

    def _restart(self, node: str) -> None:
        self.cluster.daemon("stop", node)
        self.cluster.daemon("start", node)

    def _token(self, node: str, *options: str) -> str:
        return self.cluster.godwit("a", "pki", "token", "--node", node, *options).stdout.strip()

    def _let_in(self, node: str, *options: str) -> None:
        """Anew, whatever it was before."""
        self.cluster.godwit(node, "join", "--again", "--token", self._token(node, *options))
        self._restart(node)

    @contextlib.contextmanager
    def _changed(self, node: str):
        """Whatever happens to the node's files meanwhile, afterwards they are as before."""
        cluster = self.cluster
        cluster.exec(node, "sh", "-c", f"rm -rf {TLS}.kept && cp -a {TLS} {TLS}.kept")
        try:
            yield
        finally:
            cluster.daemon("stop", node)
            cluster.exec(node, "sh", "-c", f"rm -rf {TLS} && mv {TLS}.kept {TLS}")
            self._configure(node, self._plain[node])
            cluster.daemon("start", node)

    @contextlib.contextmanager
    def _counting(self, pod: str, node: str = "a", *options: str):
        self.cluster.run(node, pod, COUNTER, *options)
        try:
            self.cluster.wait_logs(pod, "5\n", node)
            yield pod
        finally:
            self.cluster.remove(pod)

    def _counts(self, pod: str) -> None:
        before = len(self.cluster.logs(pod).splitlines())
        wait_for(f"{pod} to go on counting", lambda: len(self.cluster.logs(pod).splitlines()) > before + 5, 20)
        numbers = [int(line) for line in self.cluster.logs(pod).splitlines()]
        if numbers != list(range(1, len(numbers) + 1)):
            raise Failure(f"{pod} has lost or repeated something: {len(numbers)} numbers, the last {numbers[-3:]}")

    def _stays(self, pod: str, to: str, *words: str) -> None:
        try:
            report = self.cluster.migrate(pod, to)
        except CommandError as refusal:
            if missing := [word for word in words if word not in refusal.text]:
                raise Failure(f"{missing} missing in: {refusal.text}") from None
        else:
            raise Failure(f"it moved: {report}")
        if (state := self.cluster.pod(pod))["node"] != "a" or state["state"] != "running":
            raise Failure(f"it should run on: {state}")
        self._counts(pod)

    def _moves(self, pod: str, to: str) -> None:
        self.cluster.migrate(pod, to)
        self._counts(pod)

    def _refused(self, done, *words: str) -> None:
        said = done.stdout + done.stderr
        if done.returncode == 0 or any(word not in said for word in words):
            raise Failure(f"exit code {done.returncode}, and one of {words} is missing in: {said}")

    def _logged(self, node: str, *words: str) -> None:
        wait_for(f"{words} in the log of {node}", lambda: all(word in self.cluster.daemon_log(node, 60) for word in words), 10)

    # ---- who comes in

    def _join(self) -> None:
        cluster = self.cluster
        cluster.daemon("stop", "d")
        cluster.exec("d", "rm", "-rf", TLS)
        try:
            cluster.daemon("start", "d")
        except Failure:
            pass
        else:
            raise Failure("a daemon without a certificate runs")
        self._logged("d", "doesn't exist", "godwit join")
        said = cluster.godwit("d", "join", "--token", self._token("d")).stdout
        if "this is node d now, let in by a" not in said:
            raise Failure(said)
        cluster.daemon("start", "d")
        with self._counting("joiner"):
            self._moves("joiner", "d")
            shown = json.loads(cluster.godwit("d", "pki", "show", "--json").stdout)
            if not shown["good"] or shown["authority_here"]:
                raise Failure(f"{shown}")

    def _token_once(self) -> None:
        cluster = self.cluster
        with self._changed("d"):
            token = self._token("d")
            self._refused(cluster.godwit("d", "join", "--token", token, check=False), "has a certificate", "--again")
            cluster.godwit("d", "join", "--again", "--token", token)
            self._refused(cluster.godwit("d", "join", "--again", "--token", token, check=False), "unknown, used or too old")
            short = self._token("d", "--valid", "1s")
            time.sleep(2.1)
            self._refused(cluster.godwit("d", "join", "--again", "--token", short, check=False), "unknown, used or too old")
            address, fingerprint, secret = self._token("d").split("/")
            other = "/".join((address, fingerprint[::-1], secret))
            self._refused(cluster.godwit("d", "join", "--again", "--token", other, check=False), "not of the cluster that the token is for")
            self._refused(cluster.godwit("b", "pki", "token", "--node", "x", check=False), "authority is not in")

    # ---- who doesn't

    def _no_certificate(self) -> None:
        """Whoever connects without one gets no service and costs nothing, in TLS or without."""
        cluster = self.cluster
        program = r"""
import socket, ssl, sys
context = ssl._create_unverified_context()
answers = []
for number in range(200):
    raw = socket.create_connection(("10.66.0.11", 4070), 5)
    raw.settimeout(10)
    try:
        if number % 2:
            raw = context.wrap_socket(raw)
        raw.sendall(b"\x00\x00\x00\x05GET /" * (1 + number % 7))
        while raw.recv(4096):
            pass
    except (ssl.SSLError, OSError):
        pass
    finally:
        raw.close()
print("done")
"""
        descriptors = lambda: int(cluster.exec("a", "sh", "-c", "ls /proc/$(pgrep -xo godwitd)/fd | wc -l").stdout)  # noqa: E731
        before = descriptors()
        if "done" not in cluster.exec("client", "python3", "-c", program, seconds=120).stdout:
            raise Failure("the stranger didn't get through")
        wait_for("all descriptors to be free again", lambda: descriptors() <= before + 2, 20)
        with self._counting("unmoved"):
            self._moves("unmoved", "b")

    def _other_cluster(self) -> None:
        cluster = self.cluster
        with self._counting("ours"), self._changed("c"):
            cluster.exec("c", "rm", "-rf", TLS)
            cluster.godwit("c", "pki", "init")
            self._restart("c")
            self._stays("ours", "c", "another authority")
            self._refused(cluster.godwit("c", "migrate", "ours", "c", check=False), "another authority")
        with self._counting("again"):
            self._moves("again", "c")

    def _plain_config(self, node: str) -> str:
        text = re.sub(r"(?m)^\[tls\]\n(?:\w+ = .*\n)*", "", self._plain[node])
        return 'plain = true\nkey = "0123456789abcdef0123"\n' + text

    def _plain_there(self) -> None:
        with self._counting("ours"), self._changed("c"):
            self._configure("c", self._plain_config("c"))
            self._restart("c")
            self._stays("ours", "c", "plain = true")
            self._logged("c", "a caller speaks TLS")

    def _plain_here(self) -> None:
        cluster = self.cluster
        with self._changed("c"), self._counting("ours"):
            self._configure("c", self._plain_config("c"))
            self._restart("c")
            self._refused(cluster.godwit("c", "ps", check=False), "TLS is spoken here")

    def _expired(self) -> None:
        cluster = self.cluster
        with self._counting("ours"), self._changed("b"):
            cluster.exec("a", "sh", "-c", f"cp {CONFIG} {CONFIG}.kept")
            try:
                self._configure("a", re.sub(r"lifetime = .*", 'lifetime = "3s"', self._plain["a"]))
                self._restart("a")
                cluster.daemon("stop", "b")
                cluster.godwit("b", "join", "--again", "--token", self._token("b"))
                time.sleep(4.1)
                cluster.daemon("start", "b")
                self._logged("b", "was good until")
                self._stays("ours", "b", "was good until")
            finally:
                self._configure("a", self._plain["a"])
                self._restart("a")
        self.cluster.godwit("b", "ps")

    def _expelled(self) -> None:
        """Also what it had open ends; and with a new token it may come back."""
        cluster = self.cluster
        with self._counting("ours"):
            follower = subprocess.Popen(cluster.exec_words("c", "godwit", "logs", "--follow", "ours"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            try:
                follower.stdout.readline()
                cluster.godwit("a", "pki", "expel", "c")
                # It looks for the pod for a while, and is told why it doesn't find it.
                said = follower.communicate(timeout=60)[0]
                if "expelled" not in said:
                    raise Failure(f"the follower has read on: {said[-500:]}")
            finally:
                follower.kill()
                follower.wait()
            self._stays("ours", "c", "expelled")
            # b has heard of it, too.
            wait_for("b to know", lambda: json.loads(cluster.godwit("b", "pki", "show", "--json").stdout)["expelled"] == 1, 30)
            self._let_in("c")
            self._moves("ours", "c")

    # ---- who stays

    def _renewed_while_moving(self) -> None:
        cluster = self.cluster
        serial = lambda: json.loads(cluster.godwit("b", "pki", "show", "--json").stdout)["serial"]  # noqa: E731
        with self._counting("ours"), self._changed("b"):
            try:
                self._configure("a", re.sub(r"lifetime = .*", 'lifetime = "6s"', self._plain["a"]))
                self._restart("a")
                self._let_in("b")
                seen = {serial()}
                place, end = "a", time.monotonic() + 14
                while time.monotonic() < end:
                    place = "b" if place == "a" else "a"
                    cluster.migrate("ours", place)
                    seen.add(serial())
                if len(seen) < 3:
                    raise Failure(f"in 14 s a certificate of 6 s was renewed {len(seen) - 1} times")
                self._counts("ours")
                if place == "b":
                    cluster.migrate("ours", "a")
            finally:
                self._configure("a", self._plain["a"])
                self._restart("a")
                cluster.godwit("a", "pki", "renew")

    def _labels(self) -> None:
        """A node has the labels that the authority gave it, and no others, whatever it says."""
        cluster = self.cluster
        with self._changed("d"):
            self._let_in("d", "--label", "secure")
            with self._counting("payroll", "d", "--needs", "secure"):
                self._refused(cluster.godwit("d", "migrate", "payroll", "b", check=False), "label secure")
            self._configure("d", self._plain["d"] + '[labels]\nzone = "x"\n')
            cluster.daemon("stop", "d")
            try:
                cluster.daemon("start", "d")
            except Failure:
                self._logged("d", "zone=x", "pki token")
            else:
                raise Failure("a daemon runs that gives itself a label")

    def _users_by_certificate(self) -> None:
        cluster = self.cluster
        with self._changed("d"):
            self._let_in("d", "--label", "users=4000-4999")
            # Not even its record is written: the node that has the store looks at the certificate, too.
            self._refused(cluster.godwit("d", "run", "--detach", "--name", "roots", "--", "sleep", "1000", check=False),
                          "the certificate of d lets it ask for nothing in the name of user root")
            cluster.run("d", "users", ["sleep", "1000"], "--user", "4001")
            try:
                cluster.godwit("d", "migrate", "users", "a")
                if (place := cluster.pod("users")["node"]) != "a":
                    raise Failure(f"it is on {place}")
            finally:
                cluster.remove("users")

    def _nobody_reads_along(self) -> None:
        """What a pod has in memory isn't seen on the wire."""
        cluster = self.cluster
        secret = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
        hold = f"import os, time; kept = b''.join(bytes.fromhex('{secret}') + os.urandom(48) for _ in range(65536)); print('held', flush=True); time.sleep(1000)"
        # Everything until its stdin ends, with room for what comes faster than it reads.
        listen = r"""
import select, socket, sys
seen, hits, needle = 0, 0, bytes.fromhex(sys.argv[1])
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
print("listening", flush=True)
while True:
    ready, _, _ = select.select([wire, sys.stdin], [], [])
    if wire not in ready:
        break
    packet = wire.recv(1 << 17)
    seen += len(packet)
    hits += packet.count(needle)
print(seen, hits)
"""
        cluster.run("a", "keeper", ["python3", "-c", hold])
        try:
            cluster.wait_logs("keeper", "held")
            listener = subprocess.Popen(cluster.exec_words("b", "python3", "-c", listen, secret), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            try:
                listener.stdout.readline()
                cluster.migrate("keeper", "b", "freeze")
                seen, hits = map(int, listener.communicate(timeout=60)[0].split())
            finally:
                listener.kill()
                listener.wait()
            if seen < 4 << 20 or hits:
                raise Failure(f"of {seen} bytes on the wire {hits} pieces were the pod's memory")
        finally:
            cluster.remove("keeper")

    def _check(self):
        """`godwit check` goes by the node's config, and says when that is none."""
        about = lambda: {item["name"]: item for item in json.loads(self.cluster.godwit("d", "check", "--json", check=False).stdout)["checks"]}  # noqa: E731
        with self._changed("d"):
            found = about()
            expect("its config", found[f"the config {CONFIG}"]["ok"], True)
            expect("its certificate", found["this node's certificate"]["ok"], True)
            try:
                self._configure("d", self._plain["d"] + "\nnonsense = 1\n")
                done = self.cluster.godwit("d", "check", check=False)
                expect("exit code with a config that can't be read", done.returncode, 3)
                if f"MISSING  the config {CONFIG}" not in done.stdout or "nonsense" not in done.stdout:
                    raise Failure(f"check says nothing of its config: {done.stdout}")
            finally:
                self._configure("d", self._plain["d"])

    def _check_privileges(self) -> None:
        """`godwit check` names what the daemon wouldn't have, and tells what it can't do without from the rest."""
        items = ("capabilities", "useful capabilities", "capabilities for pods")

        def named(code: int, *words) -> dict[str, set]:
            done = self.cluster.exec("d", *words, "godwit", "check", "--json", check=False)
            expect(f"exit code of {' '.join(words)} godwit check", done.returncode, code)
            found = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
            names = {item: set(re.findall(r"CAP_\w+", found[item]["error"])) for item in items}
            expect("what is said to be there", {item: found[item]["ok"] for item in items}, {item: not names[item] for item in items})
            return names

        # This machine itself may lack some that are only useful.
        whole = named(0)
        for names, item, code in ((["sys_ptrace"], items[0], 3), (["mknod", "kill"], items[0], 3), (["ipc_lock"], items[1], 0), (["lease"], items[2], 0)):
            without = "--bounding-set=" + ",".join(f"-{name}" for name in names)
            expect(without, named(code, "setpriv", without), whole | {item: whole[item] | {f"CAP_{name.upper()}" for name in names}})

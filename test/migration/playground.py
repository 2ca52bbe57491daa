"""The playground itself: machines that are apart, a network between them, and nothing left afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pty
import random
import select
import signal
import subprocess
import tempfile
import time

from harness import Case, Failure, Skip, Suite, command, expect, wait_for
from migration.cluster import GODWIT, json_in

BASE = pathlib.Path(os.environ.get("GODWIT_PLAYGROUND_DIR") or "/var/lib/godwit-playground")

# Instead of godwitd: all that `up` asks of it is a socket that answers.
ANSWERING = """#!/usr/bin/python3
import os, socket, time
os.makedirs("/run/godwit", exist_ok=True)
listener = socket.socket(socket.AF_UNIX)
if os.path.exists("/run/godwit/godwit.sock"): os.unlink("/run/godwit/godwit.sock")
listener.bind("/run/godwit/godwit.sock")
listener.listen()
time.sleep(3600)
"""
FAILING = "#!/bin/sh\necho no bananas left\nexit 3\n"

SERVER = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.create_server((sys.argv[1], 9000), family=family)
print("ready", flush=True)
peer, _ = listener.accept()
total = 0
while chunk := peer.recv(1 << 20): total += len(chunk)
peer.close()
print(total, flush=True)
"""
SENDER = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], 9000), timeout=5)
begin = time.monotonic()
peer.sendall(bytes(int(sys.argv[2])))
peer.shutdown(socket.SHUT_WR)
peer.recv(1)
print(time.monotonic() - begin)
"""


def playground(*words, seconds: float = 60, check: bool = True) -> subprocess.CompletedProcess:
    return command([GODWIT, "playground", *words], seconds=seconds, check=check)


def remains(name: str) -> list[str]:
    """What a playground that is down should not have left."""
    found = [str(path) for path in (BASE / name, BASE / f"{name}.lock") if path.exists()]
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        head, tail = line.split(" - ", 1)
        if tail.split()[0] in ("cgroup", "cgroup2"):
            found += map(str, pathlib.Path(head.split()[4]).glob(f"**/godwit-playground/{name}"))
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if state != "Z" and f"godwit-playground/{name}/" in (process / "cgroup").read_text():
                found.append(f"{process}: {(process / 'cmdline').read_bytes()!r}")
    if BASE.as_posix() + "/" + name in pathlib.Path("/proc/mounts").read_text():
        found.append("a mount")
    return found


class Playground(Suite):
    name = "playground"
    jobs = 1

    def cases(self) -> list[Case]:
        return [Case(name, getattr(self, name)) for name in (
            "apart", "clocks", "commands", "terminal", "network", "cables", "idempotent", "several", "daemons",
            "a_daemon_that_fails", "killed_while_going_up", "killed_hosts")]

    def setup(self) -> None:
        if not GODWIT.exists():
            raise Skip("there is no build/godwit")
        self.common = f"test-{os.getpid()}"
        self.files = tempfile.TemporaryDirectory(prefix="godwit-test-")
        for name, text in (("answering", ANSWERING), ("failing", FAILING)):
            path = pathlib.Path(self.files.name) / name
            path.write_text(text)
            path.chmod(0o755)
        playground("up", "--name", self.common, "--nodes", 3, "--no-daemon")

    def teardown(self) -> None:
        playground("down", "--name", self.common)
        self.files.cleanup()
        self.gone(self.common)

    def gone(self, name: str) -> None:
        wait_for(f"the end of {name}: {remains(name)}", lambda: not remains(name))

    def on(self, host: str, *words, check: bool = True) -> subprocess.CompletedProcess:
        return playground("exec", "--name", self.common, host, "--", *words, check=check)

    def started(self, host: str, *words) -> subprocess.Popen:
        words = [GODWIT, "playground", "exec", "--name", self.common, host, "--", *map(str, words)]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    # ---- cases

    def apart(self) -> None:
        hosts = ("a", "b", "c", "client")
        for host in hosts:
            expect("host name", self.on(host, "hostname").stdout.strip(), host)
            self.on(host, "sh", "-c", f"echo {host} > /etc/godwit-test-file; echo {host} > /dev/shm/file")
        for host in hosts:
            expect("file", self.on(host, "cat", "/etc/godwit-test-file", "/dev/shm/file").stdout, f"{host}\n{host}\n")
        if pathlib.Path("/etc/godwit-test-file").exists():
            raise Failure("a host wrote into this machine's root")
        for kind in ("net", "mnt", "pid", "uts", "ipc", "time", "cgroup"):
            links = {self.on(host, "readlink", f"/proc/self/ns/{kind}").stdout for host in hosts}
            links.add(os.readlink(f"/proc/self/ns/{kind}") + "\n")
            expect(f"different {kind} namespaces", len(links), 5)
        expect("processes' root", self.on("a", "readlink", "/proc/1/root").stdout.strip(), "/")
        expect("file system of /var/lib/godwit", self.on("a", "stat", "-fc", "%T", "/var/lib/godwit").stdout.strip() != "overlayfs", True)
        # One can't see another's layer by way of the lower one.
        expect("the playground's own directory", self.on("a", "ls", BASE).stdout, "")

    def clocks(self) -> None:
        clocks = [float(self.on(host, "cat", "/proc/uptime").stdout.split()[0]) for host in ("a", "b", "c", "client")]
        clocks.append(time.clock_gettime(time.CLOCK_BOOTTIME))
        for one in range(len(clocks)):
            for other in range(one):
                if abs(clocks[one] - clocks[other]) < 500:
                    raise Failure(f"two hosts have nearly the same clock: {clocks}")

    def commands(self) -> None:
        expect("exit code", self.on("a", "sh", "-c", "exit 7", check=False).returncode, 7)
        expect("exit code by SIGKILL", self.on("a", "sh", "-c", "kill -9 $$", check=False).returncode, 137)
        expect("exit code of nothing", self.on("a", "no-such-program", check=False).returncode, 127)
        expect("exit code of nowhere", self.on("z", "true", check=False).returncode, 3)
        echo = command([GODWIT, "playground", "exec", "--name", self.common, "b", "--", "cat"], input="through\n")
        expect("input and output", echo.stdout, "through\n")
        expect("options of the command's own", self.on("a", "printf", "%s", "--name").stdout, "--name")
        waiting = self.started("c", "python3", "-c", "import signal, sys, time\n"
                               "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\nprint('ready', flush=True)\ntime.sleep(60)")
        expect("first line", waiting.stdout.readline(), "ready\n")
        waiting.send_signal(signal.SIGTERM)
        expect("exit code after SIGTERM", waiting.wait(20), 5)
        # With whoever asked for it a command ends too.
        waiting = self.started("c", "sh", "-c", "echo $$; exec sleep 61")
        number = waiting.stdout.readline().strip()
        waiting.kill()
        waiting.wait(20)
        wait_for("the end of the command", lambda: self.on("c", "test", "-e", f"/proc/{number}", check=False).returncode == 1)

    def terminal(self) -> None:
        pid, master = pty.fork()
        if pid == 0:
            os.execv(GODWIT, [str(GODWIT), "playground", "exec", "--name", self.common, "a", "--", "bash", "--norc", "-i"])
        output = ""

        def until(text: str, seconds: float = 20) -> None:
            nonlocal output
            end = time.monotonic() + seconds
            while text not in output:
                if time.monotonic() > end or not select.select([master], [], [], max(0, end - time.monotonic()))[0]:
                    raise Failure(f"no {text!r} on the terminal: {output!r}")
                output += os.read(master, 4096).decode(errors="replace")
            output = output[output.index(text) + len(text):]

        try:
            os.write(master, b"tty; echo $((40 + 2))\n")
            until("/dev/pts/")
            until("42\r\n")
            program = "import signal; signal.pthread_sigmask(0, [2]); print(str(4) + 'th', flush=True); signal.sigwait([2]); print(str(5) + 'th')"
            os.write(master, f'python3 -c "{program}"\n'.encode())
            until("4th\r\n")
            os.write(master, b"\x03")
            until("5th\r\n")
            until("# ")
            os.write(master, b"exit 9\n")
            expect("exit code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 9)
        finally:
            os.close(master)

    def transfer(self, to: str, address: str, size: int) -> float:
        """Sends bytes from the client to a host; how long it took."""
        server = self.started(to, "python3", "-c", SERVER, address)
        try:
            expect("server", server.stdout.readline(), "ready\n")
            took = float(self.on("client", "python3", "-c", SENDER, address, size).stdout)
            expect("bytes received", int(server.stdout.readline()), size)
            return took
        finally:
            server.kill()
            server.wait()

    def network(self) -> None:
        hosts = json_in(playground("status", "--name", self.common, "--json").stdout)["hosts"]
        for host in hosts:
            if host["kind"] == "node":
                self.transfer(host["name"], host["address"], 100_000)
                self.transfer(host["name"], host["address6"], 100_000)
        expect("by name", "10.66.0.12" in self.on("client", "getent", "ahostsv4", "b").stdout, True)

    def cables(self) -> None:
        def link(setting: str) -> None:
            playground("link", "--name", self.common, "b", setting)

        size = 20_000_000
        link("rate=200mbit")
        slow = self.transfer("b", "10.66.0.12", size)
        link("rate=none")
        fast = self.transfer("b", "10.66.0.12", size)
        ideal = size * 8 / 200e6
        if not 0.85 * ideal < slow < 2 * ideal or fast > 0.5 * slow:
            raise Failure(f"{size} bytes took {slow:.2f} s at 200 Mbit/s (ideal {ideal:.2f}), {fast:.2f} without a limit")
        link("down")
        ping = ("ping", "-c1", "-W1", "10.66.0.12")
        expect("an answer by a pulled cable", self.on("client", *ping, check=False).returncode, 1)
        link("up")
        self.on("client", *ping)
        expect("exit code of a wrong setting", playground("link", "--name", self.common, "b", "rate=fast", check=False).returncode, 2)

    def idempotent(self) -> None:
        before = json_in(playground("status", "--name", self.common, "--json").stdout)
        again = playground("up", "--name", self.common, "--no-daemon")
        if "already" not in again.stdout:
            raise Failure(f"a second up said: {again.stdout}")
        expect("hosts", json_in(playground("status", "--name", self.common, "--json").stdout), before)
        expect("exit code of a second down", playground("down", "--name", f"{self.common}-none").returncode, 0)

    def several(self) -> None:
        other = f"{self.common}-2"
        playground("up", "--name", other, "--nodes", 1, "--no-daemon")
        try:
            self.on("a", "touch", "/only-in-the-first")
            expect("the other's file", playground("exec", "--name", other, "a", "--", "test", "-e", "/only-in-the-first", check=False).returncode, 1)
            expect("the other's node b", playground("exec", "--name", other, "a", "--", "ping", "-c1", "-W1", "10.66.0.12", check=False).returncode, 1)
            names = [one["name"] for one in json.loads(playground("status", "--all", "--json").stdout)]
            if self.common not in names or other not in names:
                raise Failure(f"status --all has {names}")
        finally:
            playground("down", "--name", other)
        self.gone(other)
        self.on("a", "true")

    def daemons(self) -> None:
        name = f"{self.common}-d"

        def state() -> tuple:
            daemon = json_in(playground("status", "--name", name, "--json").stdout)["hosts"][0]["daemon"]
            return daemon["state"], daemon["pid"]

        playground("up", "--name", name, "--nodes", 1, "--godwitd", f"{self.files.name}/answering")
        try:
            expect("after up", state()[0], "running")
            for action in ("kill", "stop"):
                before = state()[1]
                playground("daemon", "--name", name, action, "a")
                expect(f"after {action}", state()[0], "stopped")
                playground("daemon", "--name", name, "start", "a")
                expect("after start", state()[0], "running")
                if state()[1] == before:
                    raise Failure("the daemon is still the same process")
            # The host's PID 1 has inherited and reaped those that ended.
            found = playground("exec", "--name", name, "a", "--", "ps", "-eo", "stat,args").stdout
            expect("zombies on the node", [line for line in found.splitlines() if line.startswith("Z")], [])
        finally:
            playground("down", "--name", name)
        self.gone(name)

    def a_daemon_that_fails(self) -> None:
        name = f"{self.common}-f"
        failed = playground("up", "--name", name, "--nodes", 1, "--godwitd", f"{self.files.name}/failing", check=False)
        if failed.returncode == 0 or "no bananas left" not in failed.stderr:
            raise Failure(f"up ended with {failed.returncode} and said: {failed.stderr}")
        self.gone(name)

    def killed_while_going_up(self) -> None:
        name = f"{self.common}-k"
        chance = random.Random(1)
        unfinished = 0
        for _ in range(12):
            going = subprocess.Popen([GODWIT, "playground", "up", "--name", name, "--no-daemon"], stdout=subprocess.DEVNULL)
            time.sleep(chance.uniform(0, 0.15))
            going.kill()
            unfinished += going.wait() != 0
            playground("down", "--name", name)
            self.gone(name)
        if unfinished == 0:
            raise Failure("every up had ended before it was killed: nothing was shown")

    def killed_hosts(self) -> None:
        name = f"{self.common}-h"
        playground("up", "--name", name, "--nodes", 2, "--no-daemon")
        hosts = json_in(playground("status", "--name", name, "--json").stdout)["hosts"]
        os.kill(hosts[0]["pid"], signal.SIGKILL)
        wait_for("the host's end", lambda: json_in(playground("status", "--name", name, "--json").stdout)["state"] == "broken")
        expect("exit code", playground("exec", "--name", name, "a", "--", "true", check=False).returncode, 1)
        # Going up again makes a new one of what is left.
        playground("up", "--name", name, "--nodes", 2, "--no-daemon")
        playground("exec", "--name", name, "a", "--", "true")
        playground("down", "--name", name)
        self.gone(name)

#!/usr/bin/env python3
"""What the compiler can't hold the code to: which folder may import which, that nothing of one machine is in the source, and that what the daemon may
do stands the same in the code, the unit and the documents.

The order of the folders is the list in ARCHITECTURE.md; a folder imports only from folders above its own line there.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Beside src/: what imports from it, and from which of its folders at most.
OUTSIDE = {"sim": {"base", "control"}}
# Beside each other on purpose, although one stands above the other in the list.
STRANGERS = {("pod", "objects")}
# What the unit may not have (systemd.exec(5), systemd.resource-control(5)), and why.
UNIT_REFUSES = {
    "a system call filter, or no_new_privs, which pods inherit":
        "NoNewPrivileges DynamicUser LockPersonality MemoryDenyWriteExecute PrivateDevices ProtectClock ProtectHostname ProtectKernelLogs "
        "ProtectKernelModules ProtectKernelTunables RestrictAddressFamilies RestrictNamespaces RestrictRealtime RestrictSUIDSGID "
        "SystemCallArchitectures SystemCallErrorNumber SystemCallFilter SystemCallLog",
    "namespaces other than the machine's": "BindPaths BindReadOnlyPaths ExecPaths ExtensionDirectories ExtensionImages IPCNamespacePath InaccessiblePaths "
        "JoinsNamespaceOf LogNamespace MountAPIVFS MountFlags MountImages NetworkNamespacePath NoExecPaths PrivateBPF PrivateIPC PrivateMounts PrivateNetwork "
        "PrivatePIDs PrivateTmp PrivateUsers ProcSubset ProtectControlGroups ProtectHome ProtectProc ProtectSystem ReadOnlyPaths ReadWritePaths RootDirectory "
        "RootImage TemporaryFileSystem",
    "rules on its cgroup, which hold for what it makes for pods there": "BPFProgram DeviceAllow DevicePolicy IPAddressAllow IPAddressDeny IPEgressFilterPath "
        "IPIngressFilterPath RestrictFileSystems RestrictNetworkInterfaces SocketBindAllow SocketBindDeny",
    "something else that pods inherit": "AmbientCapabilities CoredumpFilter LimitCORE OOMScoreAdjust Personality SecureBits",
}
MACHINE_PATH = re.compile(r"(?<![\w.}])/(?:home/\w+|root/\w+|work/\w+|Users/\w+)")


def rooms() -> list[str]:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    block = re.search(r"```\nsrc/\n(.*?)\n```", text, re.S)
    if not block:
        sys.exit("tidy: ARCHITECTURE.md has no list of folders under src/")
    return re.findall(r"^  (\w+)/", block.group(1), re.M)


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]


def includes(name: str):
    """Of a file: line, what it includes in quotes, and the folder of that."""
    for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
        if found := re.match(r'\s*#\s*include\s+"([^"]+)"', line):
            yield number, found.group(1), found.group(1).split("/")[0]


def imports(order: list[str], files: list[str]) -> list[str]:
    wrong = []
    for name in files:
        parts = pathlib.PurePath(name).parts
        if len(parts) != 3 or parts[0] != "src" or not name.endswith((".cpp", ".hpp")):
            continue
        room = parts[1]
        if room not in order:
            wrong.append(f"{name}: folder {room}/ is not in ARCHITECTURE.md")
            continue
        for number, target, other in includes(name):
            if "/" not in target or not (ROOT / "src" / target).is_file():
                wrong.append(f"{name}:{number}: {target} is not a folder/file.hpp under src/")
            elif other != room and (other not in order or order.index(other) > order.index(room) or (room, other) in STRANGERS):
                wrong.append(f"{name}:{number}: {room}/ may not import {target}")
    return wrong


def outside(files: list[str]) -> list[str]:
    """Folders beside src/ include their own files by folder/file.hpp, too."""
    wrong = []
    for name in files:
        room = pathlib.PurePath(name).parts[0]
        if room not in OUTSIDE or not name.endswith((".cpp", ".hpp")):
            continue
        for number, target, other in includes(name):
            there = (ROOT / target if other == room else ROOT / "src" / target).is_file()
            if "/" not in target or not there:
                wrong.append(f"{name}:{number}: {target} is not a folder/file.hpp")
            elif other != room and other not in OUTSIDE[room]:
                wrong.append(f"{name}:{number}: {room}/ may not import {target}")
    return wrong


def paths(files: list[str]) -> list[str]:
    wrong = []
    for name in files:
        if not name.endswith((".cpp", ".hpp", ".c", ".h", ".S", ".py", ".txt", ".md", ".toml", ".service")) and name != "dev":
            continue
        if name == "test/tidy.py":
            continue
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            if MACHINE_PATH.search(line):
                wrong.append(f"{name}:{number}: a path of one machine: {line.strip()}")
    return wrong


def capabilities() -> list[str]:
    """node/privileges.cpp, the systemd unit, and the table in ARCHITECTURE.md."""
    kept = set(re.findall(r"Privilege\{CAP_(\w+)", (ROOT / "src/node/privileges.cpp").read_text()))
    lines = re.findall(r"(?m)^CapabilityBoundingSet=(.*)$", (ROOT / "packaging/godwitd.service").read_text())
    unit = {name.removeprefix("CAP_") for line in lines for name in line.split()}
    section = re.search(r"(?s)\n## Who may do what\n(.*?)\n## ", (ROOT / "ARCHITECTURE.md").read_text())
    rows = re.findall(r"(?m)^\| ([A-Z_, ]+) \|", section.group(1)) if section else []
    written = {name.strip() for row in rows for name in row.split(",")}
    return [f"{where}: capabilities that differ from src/node/privileges.cpp: {sorted(names ^ kept)}"
            for where, names in (("packaging/godwitd.service", unit), ("ARCHITECTURE.md", written)) if names != kept]


def unit() -> list[str]:
    """packaging/godwitd.service has nothing that the pods would suffer from."""
    why = {name: reason for reason, names in UNIT_REFUSES.items() for name in names.split()}
    lines = enumerate((ROOT / "packaging/godwitd.service").read_text().splitlines(), 1)
    found = [(number, line.split("=")[0].strip()) for number, line in lines if re.match(r"\s*\w+\s*=", line)]
    return [f"packaging/godwitd.service:{number}: {name}= gives the daemon {why[name]}" for number, name in found if name in why]


def main() -> int:
    files = tracked()
    wrong = imports(rooms(), files) + outside(files) + paths(files) + capabilities() + unit()
    for line in wrong:
        print(line)
    print(f"tidy: {len(files)} files, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The real programs: how each is started, and which client tells whether it serves rightly.

Each brings all that it needs along (its configuration is written by its own shell), so that it runs the same on this machine and in
a pod on any node.
"""

from __future__ import annotations

import dataclasses

from harness import BUILD, ROOT

BODY = "".join(f"{number * 2654435761 % 4294967296:08x}\n" for number in range(1200))  # what nginx serves

NGINX = """
daemon off; worker_processes 2; user nobody nogroup; pid nginx.pid; error_log stderr;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s; sendfile on; tcp_nopush on;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  server {{ listen {port} backlog=1024; listen [::]:{port} backlog=1024; root www; }}
}}
"""


@dataclasses.dataclass
class Server:
    name: str
    port: int
    command: list[str]
    mode: str  # of the load client
    more: list[str] = dataclasses.field(default_factory=list)  # further options of the load client

    def client(self, host: str, *options) -> list[str]:
        return [str(word) for word in [BUILD / "loadclient", self.mode, "--host", host, "--port", self.port, *self.more, *options]]


def _shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def redis(port: int = 6379, fill_mib: int = 0, options: str = "") -> Server:
    script = f"mkdir -p /tmp/redis-{port} && cd /tmp/redis-{port} && exec redis-server --port {port} --bind 0.0.0.0 :: --protected-mode no " \
             f"--save '' --appendonly no {options}"
    return Server("redis", port, _shell(script), "redis", ["--fill-mib", fill_mib])


def memcached(port: int = 11211, fill_mib: int = 0) -> Server:
    script = f"exec memcached -u nobody -l 0.0.0.0 -p {port} -U 0 -m {max(64, fill_mib * 3)} -t 4 -c 4096"
    return Server("memcached", port, _shell(script), "memcached", ["--fill-mib", fill_mib])


def nginx(port: int = 8080) -> Server:
    body = BODY.replace("\n", "\\n")
    script = f"mkdir -p /tmp/nginx-{port}/www && cd /tmp/nginx-{port} && chmod 755 . www && printf '{body}' > www/index.html && " \
             f"cat > conf <<'END'\n{NGINX.format(port=port)}END\nexec /usr/sbin/nginx -e stderr -p /tmp/nginx-{port} -c conf"
    return Server("nginx", port, _shell(script), "http", ["--body-bytes", len(BODY), "--body-sum", body_sum(BODY)])


def python(port: int = 9000) -> Server:
    source = (ROOT / "test/clients/counting_server.py").read_text()
    return Server("python", port, ["/usr/bin/python3", "-c", source, str(port)], "echo")


def body_sum(body: str) -> str:
    """FNV-1a, 64 bits: as the load client reckons it."""
    value = 0xCBF29CE484222325
    for byte in body.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"

"""nginx with Nchan: one worker, messages in memory, no access log, as many connections as may be open.

    python -m bench.peers.nchan PORT FOLDER MODULE

Devices answer by publishing to a channel of receipts: Nchan has none, and runs no code that could remember them.
"""

import os
import resource
from pathlib import Path

from bench import words

CONFIGURATION = """
load_module {module};
daemon off;
master_process on;
worker_processes 1;
worker_rlimit_nofile {files};
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections {connections}; multi_accept on; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  nchan_shared_memory_size 256M;
  nchan_message_buffer_length 100;
  nchan_message_timeout 1h;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location ~ ^/feed/(.+)$ {{ nchan_subscriber eventsource; nchan_channel_id $1; nchan_subscriber_first_message newest; }}
    location ~ ^/push/(.+)$ {{ nchan_publisher; nchan_channel_id $1; }}
    location ~ ^/feedback/(.+)$ {{ nchan_publisher; nchan_channel_id receipts-$1; }}
  }}
}}
"""


def main() -> None:
    port, folder, module = words("PORT", "FOLDER", "MODULE")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    path = Path(folder) / "nginx.conf"
    path.write_text(CONFIGURATION.format(module=module, port=port, folder=folder, files=files, connections=max(1024, files - 100)))
    os.execvp("nginx", ["nginx", "-p", folder, "-e", "stderr", "-c", str(path)])


if __name__ == "__main__":
    main()

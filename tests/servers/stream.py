"""A live video stream for tests, run by Debian's Python: GStreamer's RTSP server, or HLS segments in a folder.

    /usr/bin/python3 tests/servers/stream.py rtsp PORT WIDTHxHEIGHT [USER PASSWORD]
    /usr/bin/python3 tests/servers/stream.py hls FOLDER WIDTHxHEIGHT
    /usr/bin/python3 tests/servers/stream.py check        exit code 3 when something is missing

Prints "ready" when it can be read.
"""

import sys
import time
from pathlib import Path

try:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer
except (ImportError, ValueError) as error:
    print(error, file=sys.stderr)
    sys.exit(3)

Gst.init(None)
NEEDED = ("videotestsrc", "openh264enc", "h264parse", "rtph264pay", "hlssink2")


def pictures(size: str) -> str:
    width, height = size.split("x")
    # a key frame each second, as cameras send them
    return (
        f"videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width={width},height={height},framerate=15/1"
        " ! openh264enc gop-size=15 ! h264parse"
    )


def rtsp(port: str, size: str, user: str = "", password: str = "") -> None:
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(f"( {pictures(size)} ! rtph264pay name=pay0 pt=96 config-interval=1 )")
    factory.set_shared(True)
    if user:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "user")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
        server.set_auth(auth)
        permissions = GstRtspServer.RTSPPermissions()
        for right in ("media.factory.access", "media.factory.construct"):
            permissions.add_permission_for_role("user", right, True)
        factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/road", factory)
    if not server.attach(None):
        sys.exit(f"port {port} cannot be used")
    print("ready", flush=True)
    GLib.MainLoop().run()


def hls(folder: str, size: str) -> None:
    pipeline = Gst.parse_launch(
        f"{pictures(size)} ! hlssink2 target-duration=1 playlist-length=4 max-files=8"
        f" location={folder}/%05d.ts playlist-location={folder}/live.m3u8"
    )
    pipeline.set_state(Gst.State.PLAYING)
    while not Path(folder, "live.m3u8").exists():
        time.sleep(0.05)
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    if sys.argv[1] == "check":
        missing = [name for name in NEEDED if not Gst.ElementFactory.find(name)]
        print("missing: " + ", ".join(missing) if missing else "ready")
        sys.exit(3 if missing else 0)
    if sys.argv[1] == "rtsp":
        rtsp(*sys.argv[2:])
    else:
        hls(*sys.argv[2:])

"""Requests out of a grammar, right but for a part or two, and what becomes of them when somebody tampers with a few bytes: strategies for
hypothesis. Two readers differ most where a request is almost right."""

from typing import Any

from hypothesis import strategies as st

RIGHT: dict[str, list[bytes]] = {
    "before": [b"", b"", b"", b"\r\n"],
    "method": [b"GET", b"POST", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"],
    "target": [b"/echo", b"/echo/a?a=b", b"/echo/%2F?a=%00&b=+", b"/echo/;a=b,c'(d)!$*~:@"],
    "version": [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"],
    "host": [b"a.test", b"a.test:80", b"[::1]:80", b""],
    "end": [b"\r\n"],
    "colon": [b": ", b":", b":\t", b":  "],
    "name": [b"X-A", b"x-a", b"Accept", b"X_A", b"Transfer_Encoding"],
    "value": [b"", b"b", b"b c", b"b\tc", b"\xe9\xff", b"b "],
    "connection": [b"close", b"keep-alive", b"Keep-Alive", b"x"],
    "length": [b"%d", b"%d", b"%d", b"0%d", b"%d ", b" %d"],
    "coding": [b"chunked", b"chunked", b"Chunked"],
    "size": [b"%x", b"%x", b"%x", b"0%x", b"%x;a", b"%x;a=b", b'%x;a="b;c"'],
    "trailer": [b"", b"", b"X: y\r\n"],
    "body": [b"", b"b", b"body", b"\r\n", b"0\r\n\r\n", b"GET /echo/in HTTP/1.1\r\nHost: a\r\n\r\n", b"\xff\0" * 20],
    "framing": [b"none", b"length", b"chunks"],
}
WRONG: dict[str, list[bytes]] = {
    "before": [b"\n", b" ", b"\r", b"\0", b"\t", b"\r\n\r\n"],
    "method": [b"BREW", b"get", b"GET ", b"", b"CONNECT", b"PRI", b"PO\0ST", b"POST\t", b"(GET)"],
    "target": [b"/echo#a", b"/echo?a#b", b"//echo", b"http://b.test:80/echo/a?b", b"/ec ho", b"*", b"echo", b"http://b@a/echo", b"http:///echo", b"ftp://a/echo", b"/echo\xff", b"/echo\x7f", b"/echo\t", b"/echo\\", b"",
               b"/echo|{}^`\"<>", b"a:80", b"http://a:b/echo", b" /echo", b"/echo\0"],
    "version": [b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1", b"HTTP/1.1 ", b" HTTP/1.1", b"HTTP/01.1", b"HTTP/1.10", b"HTTP/1", b"RTSP/1.0", b"HTTPS/1.1", b""],
    "host": [b"[::1", b"a b", b"a,b", b"a/b", b"b@a", b"a:b", b"a:80:80", b"\xe9", b"a%zz", b":80", b"a:", b"a\r\nHost: b"],
    "end": [b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\r\n\t", b"\n\r"],
    "colon": [b" : ", b"", b"\t:", b":\x0b", b":\0"],
    "name": [b"X(", b"X\xe9", b"", b" X", b"X ", b"X\0", b'"X"', b"Content-Length ", b"X:Y"],
    "value": [b"b\rc", b"b\0c", b"b\nc", b"\x01", b"\x7f", b"b\x0bc", b"b\x85c"],
    "connection": [b"close, keep-alive", b"keep-alive, close", b"", b"Content-Length", b"close\0", b"keep-alive\r\nConnection: close"],
    "length": [b"+%d", b"-%d", b"0x%d", b"%d, %d", b"%d,%d", b"%d_0", b'"%d"', b"%d.0", b"\xb2", b"", b"%d;a", b"1%d", b"\x0c%d", b"1844674407370955162%d", b"%d\0", b"%d\r\nContent-Length: %d",
               b"%d\r\nContent-Length: 1%d", b"%d %d"],
    "coding": [b"chunked ", b"xchunked", b"chunked, chunked", b"gzip, chunked", b"chunked, gzip", b"identity", b"", b"chunked;a=b", b",chunked", b"chunked,", b'"chunked"', b"\x0bchunked",
               b"chun\tked", b"chunked\t", b"identity\r\nTransfer-Encoding: chunked", b"chunked\r\nTransfer-Encoding: identity", b"chunked\r\nContent-Length: 1", b"chunked\r\nContent-Length: 0"],
    "size": [b"+%x", b"-%x", b"0x%x", b"%x ", b" %x", b"%x ;a", b"%x; a", b"%x;", b"%x_", b"%xg", b"", b"ffffffff%x", b"%x;a=\n", b'%x;a="\n"', b"%x\t", b"%x;a\x01", b"%x,", b"1%x", b"%x;=",
             b"%x;a=b c"],
    "trailer": [b"X : y\r\n", b"X\r\n", b"Content-Length: 1\r\n", b" X: y\r\n", b"X: y\n", b"X: \0\r\n", b"X(: y\r\n"],
    "body": [b"longer than it says", b""],
    "framing": [b"both", b"neither"],
}
TAMPERING = st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"0", b"9", b",", b";", b"\xff", b"\r\n\r\n", b"\r\n ", b"\r\nContent-Length: 1", b"\r\nTransfer-Encoding: chunked",
                             b"\r\nHost: b", b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1", b"#", b"%", b"@", b""])


@st.composite
def requests(draw: Any, most_wrong: int = 2) -> bytes:
    """One request, of which so many parts may be wrong wherever they stand."""
    wrong = draw(st.sets(st.sampled_from(sorted(WRONG)), max_size=most_wrong))

    def part(name: str) -> bytes:
        return draw(st.sampled_from(WRONG[name] if name in wrong else RIGHT[name]))

    method, version, framing, body = part("method"), part("version"), part("framing"), part("body")
    size = len(body) if "body" not in wrong else draw(st.integers(0, 10))
    fields = [b"Host" + part("colon") + part("host")]
    fields += [part("name") + part("colon") + part("value") for _ in range(draw(st.integers(0, 2)))]
    if draw(st.booleans()):
        fields.append(b"Connection" + part("colon") + part("connection"))
    if framing in (b"length", b"both"):
        fields.append(b"Content-Length" + part("colon") + part("length").replace(b"%d", b"%d" % size))
    if framing in (b"chunks", b"both"):
        fields.append(b"Transfer-Encoding" + part("colon") + part("coding"))
    content = body if framing in (b"length", b"neither") else b""
    if framing in (b"chunks", b"both"):
        content = b"".join(part("size").replace(b"%x", b"%x" % len(piece)) + part("end") + piece + part("end") for piece in (body, body[:2]) if piece)
        content += b"0" + part("end") + part("trailer") + part("end")
    lines = [method + b" " + part("target") + b" " + version, *draw(st.permutations(fields))]
    return part("before") + b"".join(line + part("end") for line in lines) + part("end") + content


@st.composite
def conversations(draw: Any) -> bytes:
    """A few requests one after the other, in which a few bytes may have been put in, taken out or put in the place of others."""
    said = b"".join(draw(st.lists(requests(), min_size=1, max_size=3)))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        start = draw(st.integers(0, len(said)))
        end = start + draw(st.sampled_from([0, 0, 1, 2, 7]))
        said = said[:start] + draw(TAMPERING) + said[end:]
    return said

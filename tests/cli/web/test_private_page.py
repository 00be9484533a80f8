import asyncio

from moe_hf.cli.web.private_page import PrivatePage


def test_every_answer_gets_the_headers_and_keeps_its_own() -> None:
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": b"hi"})

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(PrivatePage(app)({"type": "http"}, None, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"x"] == b"y"
    policy = dict(part.strip().split(" ", 1) for part in headers[b"content-security-policy"].decode().split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    # Nothing from another host, whatever the kind.
    assert not any("http" in sources or "*" in sources for sources in policy.values())
    assert sent[1] == {"type": "http.response.body", "body": b"hi"}

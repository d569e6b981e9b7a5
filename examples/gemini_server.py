#!/usr/bin/env python3
"""Speaks as Google's Gemini API does, well enough to write a connector against: Python's standard library only.

    python3 gemini_server.py [PORT]

It answers each prompt with the prompt's own words. What a prompt begins with decides what goes wrong:

    "busy"     503 UNAVAILABLE, once for each prompt
    "limit"    429 with a RetryInfo of a second, once for each prompt
    "quota"    429: the day's requests are used up
    "unsafe"   the prompt is blocked
    "break"    the stream breaks off
    "slow"     a word each second
    "draw"     an image
"""

import base64
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

KEY = "test-key"
PIXEL = base64.b64encode(base64.b16decode(
    "89504E470D0A1A0A0000000D49484452000000010000000108060000001F15C4890000000D49444154789C6360606060000000050001A5F645400000000049454E44AE426082"
)).decode()
seen = {}


def error(code, status, message, *details):
    return code, {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def retry_info(delay):
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def quota(id):
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": id}]}


def chunk(parts, finish=None, said=0, asked=0):
    candidate = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {
        "candidates": [candidate],
        "usageMetadata": {"promptTokenCount": asked, "candidatesTokenCount": said, "totalTokenCount": asked + said},
        "modelVersion": "gemini-test",
        "responseId": "r-1",
    }


class Gemini(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        print(f"{time.strftime('%H:%M:%S')} {format % args}", flush=True)

    def answer(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json; charset=UTF-8")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def refused(self):
        if self.headers.get("x-goog-api-key") == KEY:
            return None
        return error(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.",
                     {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"})

    def do_GET(self):
        if refused := self.refused():
            return self.answer(*refused)
        if urlsplit(self.path).path != "/v1beta/models":
            return self.answer(*error(404, "NOT_FOUND", "there is nothing here"))
        self.answer(200, {"models": [{"name": "models/gemini-test", "supportedGenerationMethods": ["generateContent"]}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        if refused := self.refused():
            return self.answer(*refused)
        url = urlsplit(self.path)
        model, _, method = url.path.removeprefix("/v1beta/models/").partition(":")
        if not model.startswith("gemini-test"):
            return self.answer(*error(404, "NOT_FOUND", f"models/{model} is not found for API version v1beta"))
        if not request.get("contents"):
            return self.answer(*error(400, "INVALID_ARGUMENT", "* GenerateContentRequest.contents: contents is not specified"))
        prompt = "".join(part.get("text", "") for part in request["contents"][-1]["parts"])
        words = prompt.split()
        first = words[0] if words else ""
        seen[prompt] = seen.get(prompt, 0) + 1
        if first == "busy" and seen[prompt] == 1:
            return self.answer(*error(503, "UNAVAILABLE", "The model is overloaded. Please try again later."))
        if first == "limit" and seen[prompt] == 1:
            return self.answer(*error(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.",
                                      quota("GenerateRequestsPerMinutePerProjectPerModel-FreeTier"), retry_info("1s")))
        if first == "quota":
            return self.answer(*error(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.",
                                      quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier"), retry_info("39043s")))
        if first == "unsafe":
            chunks = [{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": len(words)}}]
        elif first == "draw":
            chunks = [chunk([{"text": "Here it is."}, {"inlineData": {"mimeType": "image/png", "data": PIXEL}}], "STOP", 1290, len(words))]
        else:
            chunks = [chunk([{"text": word + " "}], None, n, len(words)) for n, word in enumerate(words[:-1], 1)]
            chunks.append(chunk([{"text": words[-1]}], "STOP", len(words), len(words)))

        if method == "generateContent":
            whole = chunks[-1]
            if "candidates" in whole:
                whole["candidates"][0]["content"]["parts"] = [part for one in chunks for part in one["candidates"][0]["content"]["parts"]]
            return self.answer(200, whole)
        if method != "streamGenerateContent" or parse_qs(url.query).get("alt") != ["sse"]:
            return self.answer(*error(404, "NOT_FOUND", f"there is no method '{method}' here"))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        if first == "break":
            chunks = chunks[:-1]
        for one in chunks:
            self.wfile.write(b"data: " + json.dumps(one).encode() + b"\r\n\r\n")
            self.wfile.flush()
            if first == "slow":
                time.sleep(1)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8900), Gemini)
    print(f"Gemini answers at http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()

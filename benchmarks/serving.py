"""The service under load, beside a naive one: many clients with ragged texts, every reply checked.

    python -m benchmarks.serving [MODEL] [--texts FILE] [--clients 200] [--seconds 30]

MODEL is a fine-tuned classifier of one text; without one it is ELECTRA-small with random weights. Each service runs
in a process of its own, each client sends its next text on the same connection as soon as it has the reply, and every
reply is compared with the direct prediction: the same label, probabilities within 1e-5. The naive service is what
anyone would write first: an endpoint that tokenizes one text and runs transformers' class on it, under a lock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.jobs import write_result
from electra_fast.finetuning.predict import open_finetuned, predict_examples
from electra_fast.finetuning.tables import read_rows

TOLERANCE = 1e-5
ASKED = 3.0  # times the naive service's throughput
_WARM_UP = 0.2  # of the seconds; memory is measured from there on


@dataclass
class Load:
    """What one service made of it.

    Attributes:
        requests: answered rightly after the warm-up.
        errors: replies other than 200, and connections that broke.
        wrong: replies that are not the direct prediction of their text.
        lost: requests without a reply at the end.
        p50, p99: seconds from request to reply.
        memory: bytes of resident memory after the warm-up, halfway and at the end.
    """

    requests: int = 0
    errors: int = 0
    wrong: int = 0
    lost: int = 0
    throughput: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    memory: list[int | None] = field(default_factory=list)


def made_up_texts(count: int, seed: int) -> list[str]:
    """Of as many words as SST-2's sentences have: 1 to 50, most of them 10 to 30."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(2, 9))) for _ in range(4000)]
    return [" ".join(rng.choices(words, k=min(50, max(1, round(rng.gammavariate(4.2, 4.6)))))) for _ in range(count)]


def write_small(folder: Path, texts: list[str]) -> Path:
    """ELECTRA-small with random weights and a vocabulary of the texts, as `finetune` leaves a model."""
    import torch
    from transformers import AutoTokenizer, ElectraConfig, ElectraForSequenceClassification

    from electra_fast.data.tokenizer import train_wordpiece
    from electra_fast.finetuning.model import save_finetuned
    from electra_fast.finetuning.task import task_class

    (folder / "texts.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    train_wordpiece([folder / "texts.txt"], folder / "tokenizer", vocab_size=8000)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    task = task_class("classification")(labels=["negative", "positive"])
    config = ElectraConfig(id2label=dict(enumerate(task.labels)), initializer_range=0.05)  # else ELECTRA-small's
    (folder / "model").mkdir()
    save_finetuned(ElectraForSequenceClassification(config), tokenizer, task, folder / "model")
    return folder / "model"


@contextmanager
def running(*command: str, environment: dict[str, str] | None = None):
    """A service as a process of its own: yields (process, host, port)."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | (environment or {}), cwd=Path(__file__).parents[1]
    )
    try:
        line = process.stdout.readline()
        if "http://" not in line:
            raise RuntimeError(f"{' '.join(command)} did not start; it said {line!r}, and what stands above")
        host, _, port = line.partition("http://")[2].split()[0].partition(":")
        yield process, host, int(port)
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


async def load(
    process: subprocess.Popen, host: str, port: int, texts: list[str], wanted: list[dict], clients: int, seconds: float
) -> Load:
    """`clients` at a time for `seconds`, after a warm-up that is not counted."""
    result, latencies = Load(), []
    requests = [_request(text) for text in texts]
    start = time.perf_counter()
    counted_from, end = start + _WARM_UP * seconds, start + (1 + _WARM_UP) * seconds

    async def client(number: int) -> None:
        rng = random.Random(number)
        reader, writer = await asyncio.open_connection(host, port)
        while (sent := time.perf_counter()) < end:
            index = rng.randrange(len(texts))
            writer.write(requests[index])
            try:
                status, body = await asyncio.wait_for(_reply(reader), timeout=60)
            except (asyncio.IncompleteReadError, ConnectionError):
                result.errors += 1
                reader, writer = await asyncio.open_connection(host, port)
                continue
            except asyncio.TimeoutError:
                result.lost += 1
                return
            now = time.perf_counter()
            if status != 200:
                result.errors += 1
            elif not _is_right(json.loads(body), wanted[index]):
                result.wrong += 1
            elif sent >= counted_from:
                latencies.append(now - sent)
        writer.close()

    async def watch() -> None:
        for moment in (counted_from, (counted_from + end) / 2, end):
            await asyncio.sleep(max(0.0, moment - time.perf_counter()))
            result.memory.append(_resident(process.pid))

    await asyncio.gather(watch(), *(client(number) for number in range(clients)))
    latencies.sort()
    result.requests = len(latencies)
    result.throughput = len(latencies) / (time.perf_counter() - counted_from)
    if len(latencies) > 1:
        result.p50, result.p99 = statistics.median(latencies), latencies[int(0.99 * len(latencies))]
    return result


def _request(text: str) -> bytes:
    body = json.dumps({"examples": [{"text": text}]}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)


def _is_right(reply: dict[str, Any], wanted: dict[str, Any]) -> bool:
    (found,) = reply["predictions"]
    ours, theirs = found["probabilities"], wanted["probabilities"]
    same = ours.keys() == theirs.keys() and all(abs(ours[name] - theirs[name]) <= TOLERANCE for name in ours)
    is_tie = max(theirs.values()) - sorted(theirs.values())[-2] <= 2 * TOLERANCE
    return same and (found["label"] == wanted["label"] or is_tie)


def _resident(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):  # no such system
        return None


def serve_naively(folder: str) -> None:
    """A request, a forward pass: transformers' class, batches of one."""
    import threading

    import torch
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    class Example(BaseModel):
        text: str

    class Request(BaseModel):
        examples: list[Example]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    app, lock = FastAPI(), threading.Lock()

    def predict(request: Request) -> dict[str, Any]:
        predictions = []
        for example in request.examples:
            with lock, torch.inference_mode():
                encoded = tokenizer(example.text, truncation=True, max_length=128, return_tensors="pt")
                probabilities = model(**encoded).logits[0].softmax(-1).tolist()
            named = {model.config.id2label[i]: p for i, p in enumerate(probabilities)}
            predictions.append({"label": max(named, key=named.get), "probabilities": named})
        return {"predictions": predictions}

    predict.__annotations__["request"] = Request  # local classes are not found by their names
    app.post("/predict")(predict)
    server = uvicorn.Server(uvicorn.Config(app, port=0, access_log=False, log_level="warning", backlog=2048))
    ready = server.startup

    async def startup(sockets: Any = None) -> None:
        await ready(sockets)
        print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]} is ready", flush=True)

    server.startup = startup
    server.run()


def compare(folder: Path, texts: list[str], *, clients: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Both services in turns, `rounds` times; the figures of each round, and the ratio of the medians."""
    wanted = predict_examples(open_finetuned(folder, "cpu"), [{"text": text} for text in texts]).predictions
    ours = (sys.executable, "-m", "electra_fast", "serve", str(folder), "--port", "0", "--device", "cpu")
    naive = (sys.executable, "-m", "benchmarks.serving", "--naive", str(folder))
    found: dict[str, list[Load]] = {"ours": [], "naive": []}
    for _ in range(rounds):
        for name, command in (("ours", ours), ("naive", naive)):
            with running(*command) as (process, host, port):
                measured = asyncio.run(load(process, host, port, texts, wanted, clients, seconds))
            found[name].append(measured)
            print(_line(name, measured), flush=True)
    medians = {name: statistics.median(each.throughput for each in loads) for name, loads in found.items()}
    ratio = medians["ours"] / max(medians["naive"], 1e-9)
    print(f"{ratio:.2f} times the naive service's throughput (asked: {ASKED:g})")
    return {name: [asdict(each) for each in loads] for name, loads in found.items()} | {"ratio": ratio}


def _line(name: str, load: Load) -> str:
    memory = ", ".join("?" if size is None else f"{size / 2**20:,.0f}" for size in load.memory)
    return (
        f"{name:5}: {load.requests:,} replies, {load.throughput:,.1f}/s, p50 {1e3 * load.p50:,.0f} ms, "
        f"p99 {1e3 * load.p99:,.0f} ms; {load.errors} errors, {load.wrong} wrong, {load.lost} lost; "
        f"memory {memory} MiB"
    )


def _unplaced(word: str) -> str:
    """An argument without the folders of this machine."""
    return Path(word).name if "/" in word else word


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="CSV, TSV or JSONL with the model's column of texts")
    parser.add_argument("--column", default="text", help="of that file")
    parser.add_argument("--count", type=int, default=872, help="of made-up texts")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of made-up texts")
    parser.add_argument("--naive", type=str, metavar="FOLDER", help="run the naive service (for this program itself)")
    options = parser.parse_args(arguments)
    if options.naive is not None:
        serve_naively(options.naive)
        return 0
    if options.texts is None:
        texts, source = made_up_texts(options.count, options.seed), "made up"
    else:
        texts = [row.text(options.column) for row in read_rows(options.texts)]
        source = options.texts.name
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or write_small(Path(folder), texts)
        figures = compare(model, texts, clients=options.clients, seconds=options.seconds, rounds=options.rounds)
    words = statistics.mean(len(text.split()) for text in texts)
    values = {
        "model": "ELECTRA-small, random weights" if options.model is None else options.model.resolve().name,
        "texts": {"count": len(texts), "source": source, "words": round(words, 1)},
        "clients": options.clients,
        "seconds": options.seconds,
        **figures,
    }
    given = sys.argv[1:] if arguments is None else arguments
    print(write_result("serving", " ".join(["python -m benchmarks.serving", *map(_unplaced, given)]), values))
    bad = sum(each[key] for name in ("ours", "naive") for each in figures[name] for key in ("errors", "wrong", "lost"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""`electra-fast serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from electra_fast.arguments import ArgumentParser, UsageError
from electra_fast.commands import Command, command_parser

SUMMARY = "Answer requests over HTTP with one model: predictions, inspections, vectors"
_POSITIVE = ("batch_tokens", "max_body_bytes", "max_examples", "max_queue", "max_queue_bytes", "max_connections")


def _parser() -> ArgumentParser:
    parser = command_parser(
        "serve",
        SUMMARY,
        "MODEL [OPTIONS]",
        "runs/reviews",
        "runs/small --layers -2 --pooling cls --port 8080 --threads 4",
        more=" It needs\npip install 'electra-fast[serve]'.\n\n"
        "POST /predict of a fine-tuned model, /inspect of a discriminator, /features of any encoder; GET / is a\n"
        "page to try it, /health and /metrics are for other programs. Ends at SIGTERM or ctrl-C, when all is\n"
        "answered.",
    )
    parser.add_argument(
        "model", type=str, metavar="MODEL", help="what `finetune` wrote, a run, or any encoder's folder"
    )
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen at; 0.0.0.0: all")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, or auto: the GPU where there is one")
    parser.add_argument("--threads", type=int | None, default=None, help="of the model on a CPU, if not all cores")
    parser.add_argument("--features", action="store_true", help="vectors too, of a model that has another use")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[-1], metavar="INT", help="of vectors: 1 is the first, -1 the last"
    )
    parser.add_argument(
        "--pooling",
        type=str,
        default="mean",
        choices=["mean", "cls", "max", "tokens"],
        metavar="{mean,cls,max,tokens}",
        help="of vectors: over the tokens of a text; tokens: a vector for each",
    )
    parser.add_argument(
        "--max_length", type=int | None, default=None, help="of vectors: tokens of a text, if not all it takes"
    )
    parser.add_argument("--batch_tokens", type=int, default=2048, help="of a batch, at most")
    parser.add_argument("--max_wait_ms", type=float, default=0.0, help="for more requests, before a batch begins")
    parser.add_argument("--max_body_bytes", type=int, default=2**20, help="of a request; else 413")
    parser.add_argument("--max_examples", type=int, default=256, help="of a request; else 413")
    parser.add_argument("--max_queue", type=int, default=1024, help="examples that may wait; else 429")
    parser.add_argument("--max_queue_bytes", type=int, default=2**24, help="of requests that may wait; else 429")
    parser.add_argument("--max_connections", type=int, default=512, help="at a time; else 503")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for a client to send or to read")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds to answer what was accepted, at the end")
    return parser


def _run(args: Any, _: list[str]) -> int:
    _check(args)
    # Threads that spin while they wait for a model would take the processor from those that read requests.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from electra_fast.extras import require

    for library in ("fastapi", "uvicorn", "prometheus_client"):
        require(library, extra="serve", purpose="Services over HTTP")

    from electra_fast.serving.app import Limits, create_app
    from electra_fast.serving.batcher import Batcher
    from electra_fast.serving.metrics import Metrics
    from electra_fast.serving.server import Server, listen, url_of
    from electra_fast.serving.services import open_services

    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
    services = open_services(
        args.model,
        device=args.device,
        features=args.features,
        layers=args.layers,
        pooling=args.pooling,
        max_length=args.max_length,
    )
    listener = listen(args.host, args.port)
    metrics = Metrics()
    batcher = Batcher(
        batch_tokens=args.batch_tokens,
        max_wait=args.max_wait_ms / 1000,
        max_queue=args.max_queue,
        max_queue_bytes=args.max_queue_bytes,
        on_batch=metrics.batch,
    )
    limits = Limits(args.max_body_bytes, args.max_examples, args.timeout)
    folder = Path(args.model).resolve()
    name = folder.parent.name if folder.name == "model" else folder.name  # a fine-tuning run's
    app = create_app(services, batcher, metrics, name=name, limits=limits)
    routes = ", ".join(f"/{service.route}" for service in services)
    server = Server(
        app,
        timeout=args.timeout,
        grace=args.grace,
        max_connections=args.max_connections,
        on_ready=lambda: print(f"{name} answers at {url_of(listener)} ({routes}); ctrl-C ends it", flush=True),
    )
    server.run([listener])
    batcher.stop(args.grace)
    print("ended", flush=True)
    return 0


def _check(args: Any) -> None:
    for name in _POSITIVE:
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} must be 1 or more; got {getattr(args, name)}")
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads must be 1 or more; got {args.threads}")
    for name, least in (("timeout", 0.1), ("grace", 0), ("max_wait_ms", 0)):
        if not least <= getattr(args, name) < float("inf"):
            raise UsageError(f"--{name} must be {least:g} or more; got {getattr(args, name)}")
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port must be 0 to 65535; got {args.port}")


COMMAND = Command(SUMMARY, _parser, _run)

"""Text -> tokens -> shards -> batches: one noun per module.

`documents` reads text, `tokenizer` trains and loads WordPiece, `prepare` writes a corpus folder, `corpus` opens it,
`loader` makes batches of it, `collator` makes packed batches of any tokenized dataset, `demo_corpus` (with `prose`)
collects the demo's text. Importing this package imports none of them: the worker processes of `prepare` start without
PyTorch.
"""

"""Text -> tokens -> shards -> batches: one noun per module.

`documents` reads text, `tokenizer` trains and loads WordPiece, `prepare` writes a corpus folder, `corpus` opens it,
`units` finds the words and entities in it; `remote` and `remote_corpus` reach storages, `encoding`, `parts` and
`datatrove` share the work among the tasks of a cluster; `pieces`, `streams`, `segments` and `spans` say which text
stands where, and in which order; `loader` makes batches of that and `prefetch` makes them ahead. `collator` makes
packed batches of any tokenized dataset, `demo_corpus` (with `prose`) collects the demo's text. Importing this package
imports none of them: the worker processes of `prepare` start without PyTorch.
"""

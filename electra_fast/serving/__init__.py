"""`electra-fast serve`: one model behind HTTP.

A request's way: its body is read and checked (`bodies`), a service makes examples of it (`services`), the batcher puts
them into one batch with whatever else waits and runs the model (`batcher`), and the app answers (`app`). `server`
starts and stops it all, `page` is for trying it by hand, `metrics` is what it tells of itself.
"""

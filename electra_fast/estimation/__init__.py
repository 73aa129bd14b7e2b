"""How long a pretraining run will take, what memory it needs, and what it costs, before anything is rented.

`work` counts the run's arithmetic, `memory` its bytes, `speed` knows how fast hardware is and who says so, `trial`
measures it here, and `report` puts all of it together for `electra-fast estimate`.
"""

from __future__ import annotations

import pytest

from electra_fast.data.prose import paragraphs


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        pytest.param(
            """Returns the sum of all elements in the tensor.

            Args:
                input (Tensor): the input tensor that is summed over.
                hidden_size (`int`, *optional*, defaults to 768):
                    Dimensionality of the encoder layers
                    and of the pooler layer.
                lines -- the number of lines to be read at once

            Returns:
                `torch.Tensor`: The sum, or zero if there is nothing to add.
            """,
            [
                ("Returns the sum of all elements in the tensor.",),
                ("The input tensor that is summed over.",),
                ("Dimensionality of the encoder layers and of the pooler layer.",),
                ("The number of lines to be read at once.",),
                ("The sum, or zero if there is nothing to add.",),
            ],
            id="arguments become their descriptions",
        ),
        pytest.param(
            """See :class:`~torch.nn.Linear` for more about the ``weight`` of it.

            It is the [`Trainer`] that reads the `documentation <https://x.org/y>`_ in **full**, as [it](a.md) should.
            The curve is defined by :math:`y = x^2` and is a formula. This one can be read as it is.
            Open the page at https://example.org/page to see what it is about.
            """,
            [
                ("See Linear for more about the weight of it.",),
                (
                    "It is the Trainer that reads the documentation in full, as it should.",
                    "This one can be read as it is.",
                ),
            ],
            id="markup becomes text, formulas and links go",
        ),
        pytest.param(
            """
            The heading of this part here
            =============================

            This is the way to call the function::

                a literal block that is like prose in every word of it

            And that was the end of the block.

            >>> print("this is an example of the use of it")
            this is an example of the use of it

            ```python
            this is what a program is like in the end
            ```

            .. code-block:: python

                this is what a program is like in the end

            .. note::
                The body of a note is a part of the text.

            ====== ======
            this is a row   of a table   and so is this
            ====== ======

            Example:
                this is an example of the use of it
            """,
            [
                ("This is the way to call the function:",),
                ("And that was the end of the block.",),
                ("The body of a note is a part of the text.",),
            ],
            id="code, tables and headings go",
        ),
        pytest.param(
            """Too short to keep. The names foo_bar, baz_qux and a.b.c are what this is about in f(x).
            It sets x = 3 in the end of the call. It is a word of {placeholder} in the text. Weiß is not in ASCII here.
            Copyright is held by the authors of the file. The result of the call is as
            """,
            [],
            id="identifiers, code, boilerplate and cut ends go",
        ),
        pytest.param(
            """The first line is short
            The second is a sentence of its own and long enough, e.g. this one, that it needs another line
            to come to its end. Then there is one more (in parentheses)
            """,
            [
                ("The first line is short.",),
                (
                    "The second is a sentence of its own and long enough, e.g. this one, that it needs another line to "
                    "come to its end.",
                    "Then there is one more (in parentheses).",
                ),
            ],
            id="a break where there was room is meant",
        ),
    ],
)
def test_paragraphs(docstring: str, expected: list[tuple[str, ...]]) -> None:
    assert paragraphs(docstring) == expected

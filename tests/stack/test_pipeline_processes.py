"""A pipeline over several processes makes the bits that one process makes."""

import pytest
from helpers import processes
from stack import across
from stack.blocks import equal

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def test_the_bits_of_one_process():
    variables, x = across.given()
    one = across.steps(across.RUNS, variables, x)
    for count, runs in {2: ["gpipe", "circular"], 4: ["circular"]}.items():
        given = runs, variables, x
        for found in processes.run(across.steps, *given, processes=count, devices=4):
            equal(found, {name: one[name] for name in runs})

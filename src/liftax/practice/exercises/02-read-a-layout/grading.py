from liftax.practice.grading import Grading, Values

GRADING = Grading(
    parts=(
        Values(
            "SHAPES",
            {
                "params/up/kernel": "the layer's own axes are in 4, out 16; the scan puts its 6 in "
                "front, then the vmap its 3 at place 1",
                "params/up/bias": "a bias has no axis for the input; both lifts stack it as they "
                "stack the kernel",
                "params/down/kernel": "from the hidden width back to that of x",
            },
        ),
    ),
)

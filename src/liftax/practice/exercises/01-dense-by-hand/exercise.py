import liftax as nn


class MyDense(nn.Module):
    features: int

    # In a compact method parameters are made where they are used.
    @nn.compact
    def __call__(self, x):
        inputs = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), ...)  # of which shape?
        bias = ...  # another parameter
        return x @ kernel + bias

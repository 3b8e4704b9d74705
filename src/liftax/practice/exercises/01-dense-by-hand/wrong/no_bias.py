# layout: params/bias: yours has none, goal [7]
import liftax as nn


class MyDense(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        inputs = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (inputs, self.features))
        return x @ kernel

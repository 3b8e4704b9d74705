# layout: params/kernel: yours has none
import liftax as nn


class MyDense(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        inputs = x.shape[-1]
        kernel = self.param("weights", nn.initializers.lecun_normal(), (inputs, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return x @ kernel + bias

"""An experiment of one weight, with a gradient by hand that may be wrong."""

LINE = """
    import jax, jax.numpy as jnp
    import minijaxnet as mjn

    def loss(params, batch):
        return jnp.mean((jnp.tanh(params["w"] * batch.x) - batch.y) ** 2)

    def value_and_gradient(params, batch):
        h = jnp.tanh(params["w"] * batch.x)
        return jnp.mean((h - batch.y) ** 2), {{"w": SLOPE}}

    def data():
        x = jnp.linspace(-1, 1, 6)
        return mjn.Batch(x, x**2), mjn.Batch(x, x**2)

    experiment = mjn.Experiment(
        "line", lambda key, *, start=0.5: {{"w": jnp.float32(start)}}, loss, data{by_hand}
    )
"""
RIGHT = "2 * jnp.mean((h - batch.y) * (1 - h**2) * batch.x)"


def line(slope, by_hand=", value_and_gradient=value_and_gradient"):
    return LINE.format(by_hand=by_hand).replace("SLOPE", slope)

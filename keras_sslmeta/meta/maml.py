"""MAML (Finn, Abbeel and Levine 2017)."""

import keras

from keras_sslmeta.meta.adapting import AdaptingModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.meta")
class MAML(AdaptingModel):
    r"""MAML: weights from which a few gradient steps on a task's support set answer its queries.

    For each task, from the meta-learnt weights θ,

    ```
    θ_0 = θ          θ_{k+1} = θ_k − α ∇ L_support(θ_k)          k = 0 … inner_steps − 1
    ```

    and the meta-loss, which `fit` minimises in θ, is the mean over tasks of L_query(θ_K), itself a mean
    over the task's queries. Its gradient goes through all inner steps, exactly, at the memory of one step's
    activations plus the weights of each step. With `second_order=False` the inner gradients count as
    constants (FOMAML).

    **When to choose it**: any model and any loss, regression too, on tasks that share more than features;
    methods that compare with class means are simpler and cheaper where tasks are few-shot classification. A
    step costs about as many passes as 4 · (inner_steps + 1) forward passes on the support set;
    `second_order=False` about half.

    Every batch is a batch of tasks, ``({"support_x", "support_y", "query_x"}, query_y)``, as
    `keras_sslmeta.data.episodes(…).batch(tasks)` gives them. Keras's losses and metrics see the queries of
    all tasks as one batch, `(tasks · queries, …)`.

    Batch normalisation is the choice that differs most between implementations of MAML, and what leaks:

    * `"transductive"` (Finn et al. 2017): always the statistics of the batch at hand. Queries are
      normalised by their own statistics, so **a prediction depends on the other queries** of its task,
      and the plain model that `adapt` gives answers differently.
    * `"support"`: steps by the support set's statistics, answers by those that the adapted network
      takes of the support set. Nothing leaks between queries.
    * `"per_step"` (Antoniou et al. 2019): moving statistics for each step and for the answers, shared by
      all tasks; nothing leaks, which costs accuracy against figures where it does. They normalise in
      steps and in answers, with gradients that are those of the batch's own statistics (batch
      renormalisation, Ioffe 2017): a network trained by the batch and then given moving statistics
      diverges in its inner steps. Meta-training begins with the batch's, where queries see each other, and
      goes over to the moving ones within its first 200 steps; these start from the model's, and
      follow fast at first, at (1 + n) / (10 + n) for the n-th step as far as that is below the layer's
      momentum. Steps beyond `inner_steps` use the last ones.
    * `"frozen"`: the model's moving statistics throughout, unchanged: for pretrained encoders.

    Under the first three the model's own moving statistics follow those of the support sets at θ. Dropout and
    other random layers are active in meta-training, on support and queries, and nowhere else. What layers add
    to the loss (`activity_regularizer`, `add_loss`) counts in inner steps and in the meta-loss; regularisers
    of weights count once, on θ.

    Args:
        model: any `keras.Model`; its weights are the θ, trained in place. Recurrent layers need
            `use_cudnn=False` for second order on a GPU.
        inner_steps: K, number of inner steps in meta-training, from 0. Defaults to 1 (the paper: 1 for
            sinusoids and 5-way Omniglot, 5 otherwise).
        inner_learning_rate: α, from 0. Defaults to 0.01 (the paper, sinusoids and mini-ImageNet). The
            paper's code sums the loss over classes: on Keras's mean its rates for N-way tasks are N times
            larger (0.4 → 2.0 for 5-way Omniglot).
        second_order: whether the meta-gradient goes through the inner gradients. Defaults to True.
        test_inner_steps: number of steps in `evaluate`, `predict` and `adapt`. Defaults to None: as in
            training. May be changed later; call `compile` again then, as Keras keeps what it has traced.
        inner_optimizer: a `keras.optimizers.SGD` (with momentum or without), `Adam` or `RMSprop`, whose
            state starts anew for each task; `clipvalue`, `clipnorm` and `global_clipnorm` are taken over.
            Defaults to None: plain SGD at `inner_learning_rate`, which is ignored otherwise.
        inner_loss: loss of the support set, as in `compile`; or a built Keras layer, or model of two inputs,
            which is called with `[targets, outputs]`, whose mean output is the loss, and whose weights are
            meta-learnt with θ. Defaults to None: the compiled loss.
        adapted: a function from a variable to whether inner steps change it; the others are
            meta-learnt all the same. `ANIL` and `BOIL` have predicates of their own. A function registered
            with Keras can be saved with the model. Defaults to None: all trainable variables.
        batch_normalization: `"transductive"`, `"support"`, `"per_step"` or `"frozen"`, as above. Defaults
            to `"transductive"` (the paper).
        vectorized: whether the tasks of a batch run at once, by `tf.vectorized_map`, in `fit` and `evaluate`:
            of use on accelerators, at the memory of all tasks. Defaults to False: two at a time, which is
            faster on a CPU.
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: an episode, `{"support_x", "support_y", "query_x"}`, each `(tasks, samples, …)` or a nest.
        training: whether this is meta-training, or evaluation.

    Returns:
        `call` and `predict`: the adapted models' predictions for the queries, `(tasks, queries, …)`.
        `fit` reports, beside `loss` (queries after adaptation, and regularisers of θ) and the metrics,
        `support_loss_before`; `evaluate`, and `fit` on validation data, also `query_loss_before` and
        `support_loss_after`, which would cost meta-training further passes.

    Raises:
        ValueError: if an argument is out of its range; if `model` has no trainable weights, or `adapted`
            selects none; if an episode lacks a part, or its parts do not agree; if second order meets
            a layer that has no second derivative.
        tf.errors.InvalidArgumentError: in a step, if labels are not classes of the model's head; under
            `jit_compile=True` the loss is NaN instead.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(40, "relu"), keras.layers.Dense(1)])
    >>> maml = ksm.MAML(network, inner_steps=1, inner_learning_rate=0.01)
    >>> maml.compile(keras.optimizers.Adam(1e-3), loss="mse")
    >>> history = maml.fit(ksm.data.sinusoids(seed=0).batch(25), steps_per_epoch=2, verbose=0)
    >>> sorted(history.history)
    ['loss', 'support_loss_before']
    >>> episode, query_y = next(iter(ksm.data.sinusoids(seed=1)))
    >>> specialist = maml.adapt(episode["support_x"], episode["support_y"], steps=10)
    >>> specialist.predict(episode["query_x"], verbose=0).shape
    (10, 1)

    Reference:
        Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML
        2017, Algorithms 1 and 2. https://arxiv.org/abs/1703.03400. Antoniou, Edwards, Storkey, "How to
        train your MAML", ICLR 2019 (per-step statistics). https://arxiv.org/abs/1810.09502
    """

    def __init__(
        self,
        model,
        inner_steps: int = 1,
        inner_learning_rate: float = 0.01,
        second_order: bool = True,
        test_inner_steps: int | None = None,
        inner_optimizer=None,
        inner_loss=None,
        adapted=None,
        batch_normalization: str = "transductive",
        vectorized: bool = False,
        **kwargs,
    ):
        super().__init__(
            model,
            inner_steps=inner_steps,
            inner_learning_rate=inner_learning_rate,
            second_order=second_order,
            test_inner_steps=test_inner_steps,
            inner_optimizer=inner_optimizer,
            inner_loss=inner_loss,
            adapted=adapted,
            batch_normalization=batch_normalization,
            vectorized=vectorized,
            **kwargs,
        )

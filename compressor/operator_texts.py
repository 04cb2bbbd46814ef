"""Bodies of the exporter's own operators, in ONNX's text form: what stands in capitals within is put in by `compressor.operators`.

What:     attention, in the fused kernel or by its probabilities; what a token counts, by each kind of significance; dropping; putting back.
Limits:   each body is written for the inputs that its operator has there, and reads what the bodies before it name.
"""

SHARED = """
    split = Constant <value_ints: ints = @split> ()
    scale = Constant <value_float: float = @scale> ()
"""
SOFTMAX = """If (padded) <
        then_branch = masked () => (float[b, h, m, n] of_real) {
            zero = Constant <value_float = 0.0> ()
            unseen = Constant <value_float = UNSEEN> ()
            axes = Constant <value_ints = [1, 2]> ()
            columns = Unsqueeze (real, axes)
            hiding = Where (columns, zero, unseen)
            visible = Add (SCORES, hiding)
            of_real = Softmax <axis = -1> (visible)
        },
        else_branch = plain () => (float[b, h, m, n] of_all) {
            of_all = Softmax <axis = -1> (SCORES)
        }
    >"""
PROBABILITIES = """
    q4 = Reshape (q, split)
    k4 = Reshape (k, split)
    v4 = Reshape (v, split)
    queries = Transpose <perm = [0, 2, 1, 3]> (q4)
    keys = Transpose <perm = [0, 2, 3, 1]> (k4)
    values = Transpose <perm = [0, 2, 1, 3]> (v4)
    scaled = Mul (queries, scale)
    scores = MatMul (scaled, keys)
    probabilities = SOFTMAX
    mixed = MatMul (probabilities, values)
    turned = Transpose <perm = [0, 2, 1, 3]> (mixed)
    whole = Constant <value_ints = [0, 0, -1]> ()
    CONTEXT = Reshape (turned, whole)
"""
FUSED = """
    CONTEXT = If (padded) <
        then_branch = masked () => (float[b, m, w] of_real) {
            mask = Cast <to = 6> (real)
            of_real = com.microsoft.MultiHeadAttention <num_heads: int = @num_heads> (q, k, v, , mask)
        },
        else_branch = plain () => (float[b, m, w] of_all) {
            of_all = com.microsoft.MultiHeadAttention <num_heads: int = @num_heads> (q, k, v)
        }
    >
"""
EIGHTHS = """
    tokens = Constant <value_ints = [1]> ()
    end = Constant <value_ints = [9223372036854775807]> ()
    every = Constant <value_ints = [EVERY]> ()
"""
# A question's tokens are the first of their text, and stay so when others leave.
QUESTION = """
    tokens = Constant <value_ints = [1]> ()
    of_question = Cast <to = 7> (voters)
    counts = ReduceSum <keepdims = 0> (of_question, tokens)
    end = ReduceMax <keepdims = 1> (counts)
    every = Constant <value_ints = [1]> ()
"""
ROWS_OF_SOME = """
    begin = Constant <value_ints = [0]> ()
    asking = Slice (q, begin, end, tokens, every)
    asking4 = Reshape (asking, split)
    asked4 = Reshape (k, split)
    some_queries = Transpose <perm = [0, 2, 1, 3]> (asking4)
    by_asked = Transpose <perm = [0, 2, 1, 3]> (asked4)
    asked = Transpose <perm = [0, 1, 3, 2]> (by_asked)
    some_scaled = Mul (some_queries, scale)
    some_scores = MatMul (some_scaled, asked)
    some = SOFTMAX
    voting = Slice (voters, begin, end, tokens, every)
"""
COUNTED = """
    one = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    numbers = Cast <to = 1> (VOTERS)
    by_head = Unsqueeze (numbers, one)
    rows = Unsqueeze (by_head, last)
    counted = Mul (ROWS, rows)
"""
# Two reductions, not one over both axes: onnxruntime is 14x slower on the joint one.
VOTES = """
    over_heads = Constant <value_ints = [1]> ()
    over_queries = Constant <value_ints = [2]> ()
    votes = If (padded) <
        then_branch = masked () => (float[b, h, n] of_real) {
            COUNTED
            of_real = ReduceSum <keepdims = 0> (counted, over_queries)
        },
        else_branch = plain () => (float[b, h, n] of_all) {
            of_all = ReduceSum <keepdims = 0> (ROWS, over_queries)
        }
    >
    SIGNIFICANCE = ReduceSum <keepdims = 0> (votes, over_heads)
"""
VOTES_OF_QUESTION = """
    COUNTED
    over_queries = Constant <value_ints = [2]> ()
    votes = ReduceSum <keepdims = 0> (counted, over_queries)
    SIGNIFICANCE = ReduceSum <keepdims = 0> (votes, one)
"""
VOTE_OF_CLS = """
    from = Constant <value_ints = [0]> ()
    to = Constant <value_ints = [1]> ()
    heads = Constant <value_ints = [2]> ()
    within = Constant <value_ints = [3]> ()
    cls = Slice (q, from, to, to)
    asked = Mul (cls, scale)
    products = Mul (k, asked)
    by_head = Reshape (products, split)
    of_cls = ReduceSum <keepdims = 0> (by_head, within)
    row = If (padded) <
        then_branch = masked () => (float[b, n, h] of_real) {
            unseen = Constant <value_float = UNSEEN> ()
            last = Constant <value_ints = [-1]> ()
            columns = Unsqueeze (real, last)
            visible = Where (columns, of_cls, unseen)
            of_real = Softmax <axis = 1> (visible)
        },
        else_branch = plain () => (float[b, n, h] of_all) {
            of_all = Softmax <axis = 1> (of_cls)
        }
    >
    SIGNIFICANCE = ReduceSum <keepdims = 0> (row, heads)
"""
SOME_BIAS = """
    by_query = Constant <value_ints = [2]> ()
    some_bias = Slice (bias, begin, end, by_query, every)
"""
BIAS_OF_CLS = """
    by_query = Constant <value_ints = [2]> ()
    one_row = Slice (bias, from, to, by_query)
    row_of_bias = Squeeze (one_row, by_query)
    cls_bias = Transpose <perm = [0, 2, 1]> (row_of_bias)
"""
LEARNED = """
    unseen = Constant <value_float = UNSEEN> ()
    last = Constant <value_ints = [-1]> ()
    parts = Mul (states, ranker)
    scores = ReduceSum <keepdims = 0> (parts, last)
    visible = Where (real, scores, unseen)
    SIGNIFICANCE = Softmax <axis = 1> (visible)
"""
# What is left of a question's tokens comes first. The sum over them of one softmax over all pairs is what a token counts.
LEARNED_OF_QUESTION = (
    QUESTION
    + """
    unseen = Constant <value_float = UNSEEN> ()
    begin = Constant <value_ints = [0]> ()
    last = Constant <value_ints = [-1]> ()
    some = Slice (states, begin, end, tokens, every)
    voting = Slice (voters, begin, end, tokens, every)
    ours = MatMul (states, ranker)
    theirs = MatMul (some, asker)
    turned = Transpose <perm = [0, 2, 1]> (theirs)
    scores = MatMul (ours, turned)
    rows = Unsqueeze (real, last)
    columns = Unsqueeze (voting, tokens)
    both = And (rows, columns)
    visible = Where (both, scores, unseen)
    in_a_row = Flatten <axis = 1> (visible)
    likely = Softmax <axis = 1> (in_a_row)
    shape = Shape (visible)
    pairs = Reshape (likely, shape)
    SIGNIFICANCE = ReduceSum <keepdims = 0> (pairs, last)
"""
)
NONE = """
    SIGNIFICANCE = Constant <value = float[1, 1] {0.0}> ()
"""
DROP = """
    hidden_after, real_after, rows_after, ahead_after = If (leaves) <
        then_branch = some () => (float[b, n, w] hidden_left, bool[b, n] real_left, int64[b, n] rows_left, float[b, n] ahead_left) {
            never = Constant <value_float = -1.0> ()
            last = Constant <value_ints = [-1]> ()
            none = Constant <value_int = 0> ()
            one = Constant <value_int = 1> ()
            SCORE
            ranked = Where (real, score, never)
            most = ReduceMax <keepdims = 1> (keep)
            best, kept = TopK <axis = 1> (ranked, most)
            index = Unsqueeze (kept, last)
            hidden_left = GatherND <batch_dims = 1> (hidden, index)
            rows_left = GatherElements <axis = 1> (rows, kept)
            ahead_left = GatherElements <axis = 1> (ahead, kept)
            end = Squeeze (most)
            places = Range (none, end, one)
            counts = Unsqueeze (keep, last)
            real_left = Less (places, counts)
        },
        else_branch = all () => (float[b, n, w] hidden_stayed, bool[b, n] real_stayed, int64[b, n] rows_stayed, float[b, n] ahead_stayed) {
            hidden_stayed = Identity (hidden)
            real_stayed = Identity (real)
            rows_stayed = Identity (rows)
            ahead_stayed = Identity (ahead)
        }
    >
"""
ALONE = "score = Add (significance, ahead)"
# A mean over the text as it was: tokens that have left count nothing, as places beyond its ends do.
AROUND = """
            own = Constant <value_float: float = @share> ()
            first = Constant <value_ints = [0]> ()
            second = Constant <value_ints = [1]> ()
            shape = Shape (rows)
            texts = Slice (shape, first, second)
            row = ReduceMax <keepdims = 0> (rows)
            place = Add (row, one)
            length = Unsqueeze (place, first)
            size = Concat <axis = 0> (texts, length)
            nothing = ConstantOfShape <value = float[1] {0.0}> (size)
            in_text = ScatterElements <axis = 1> (nothing, rows, significance)
            channel = Unsqueeze (in_text, second)
            means = AveragePool <kernel_shape: ints = @kernel, pads: ints = @pads, count_include_pad = 1> (channel)
            mean = Squeeze (means, second)
            around = GatherElements <axis = 1> (mean, rows)
            alone = Mul (significance, own)
            both = Add (around, alone)
            score = Add (both, ahead)
"""
# What votes by where it stands needs a text that stays whole to stay in its order, whatever its batch does.
IN_ORDER = """
            along = Constant <value_ints = [1]> ()
            back = Constant <value_int = -1> ()
            of_text = Cast <to = 7> (real)
            held = ReduceSum <keepdims = 0> (of_text, along)
            stays = GreaterOrEqual (keep, held)
            whole = Unsqueeze (stays, last)
            sizes = Shape (real)
            there = Gather (sizes, one)
            backwards = Range (there, none, back)
            by_place = Cast <to = 1> (backwards)
            score = Where (whole, by_place, by_significance)
"""
RESTORE = """
    states = If (due) <
        then_branch = back () => (float[b, n, w] put_back) {
            last = Constant <value_ints = [-1]> ()
            tokens = Flatten <axis = 2> (restored)
            places = Add (rows, starts)
            index = Unsqueeze (places, last)
            changed = If (padded) <
                then_branch = masked () => (float[t, w] of_real) {
                    before = GatherND (tokens, index)
                    columns = Unsqueeze (real, last)
                    newest = Where (columns, hidden, before)
                    of_real = ScatterND (tokens, index, newest)
                },
                else_branch = plain () => (float[t, w] of_all) {
                    of_all = ScatterND (tokens, index, hidden)
                }
            >
            shape = Shape (restored)
            put_back = Reshape (changed, shape)
        },
        else_branch = later () => (float[b, n, w] as_before) {
            as_before = Identity (restored)
        }
    >
"""

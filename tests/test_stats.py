import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as reference

from segbench.measures.base import iou, mean_over_classes
from segbench.measures.bf1 import contour_f1
from segbench.report import ranking, stats

SWEEPS = 600


@pytest.fixture(scope="module")
def simulation():
    """benchmarks/bootstrap.py: sweeps whose true scores are known."""
    path = Path(__file__).parents[1] / "benchmarks" / "bootstrap.py"
    spec = importlib.util.spec_from_file_location("bootstrap_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def region_counts(decoders=2, seeds=3, images=12, classes=4, seed=0):
    """Random counts; the last class is in two images only, the one before in none."""
    rng = np.random.default_rng(seed)
    true = rng.integers(1, 1000, (1, 1, images, classes))
    true[..., -2] = 0
    true[:, :, 2:, -1] = 0
    right = rng.integers(0, np.broadcast_to(true, (decoders, seeds, images, classes)) + 1)
    wrong = rng.integers(0, 200, right.shape) * (true > 0)
    return np.stack([right, right + wrong, np.broadcast_to(true, right.shape)], -2)


def contour_counts(**kwargs):
    right, predicted, true = np.moveaxis(region_counts(**kwargs), -2, 0)
    return np.stack([right, predicted, right // 2, true], -2)


def by_loop(counts, score, chosen):
    """Score per class and mean of one run on the chosen images; what is absent there has its score on all images."""
    whole, part = score(counts.sum(0)), score(sum(counts[i] for i in chosen))
    per_class = [w if math.isnan(p) else p for p, w in zip(part, whole, strict=True)]
    return [*per_class, np.mean([v for v in per_class if not math.isnan(v)])]


def scores(decoders, seeds, images, rng, means=0.0, by_seed=0.0, by_image=0.0, by_both=0.0):
    """`Measured` with normal scores around ``means``; standard deviations of what seeds, images and both add."""
    image = rng.normal(0, by_image, (images, decoders, 1)) + rng.normal(0, by_both, (images, decoders, seeds))
    seed = rng.normal(0, by_seed, (decoders, seeds))
    values = np.reshape(means, (-1, 1)) + seed + image.mean(0)
    return stats.Measured(values[..., None], (image - image.mean(0))[..., None])


def share_band(low, high, number=SWEEPS):
    """Shares that a method whose true share is in low to high leaves with a probability below 1e-4."""
    return reference.binom.ppf(5e-5, number, low) / number, reference.binom.isf(5e-5, number, high) / number


def test_two_images_by_hand():
    counts = np.array([[6, 8, 8], [2, 4, 4]]).reshape(1, 1, 2, 3, 1)  # IoU 6/10 and 2/6, together 8/16
    cell = stats.intervals(stats.measure(counts))[0][0]
    influence = np.array([1 / 2 - 2 / 6, 1 / 2 - 6 / 10])  # without the first, without the second
    assert cell.value == 0.5
    assert cell.se == pytest.approx(influence.std(ddof=1) / math.sqrt(2))
    assert (cell.df, cell.low, cell.high) == (1, 0, 1)  # 12.7 standard errors, cut off
    assert cell.scope == "this trained model"


@pytest.mark.parametrize(("make", "score"), [(region_counts, iou), (contour_counts, contour_f1)])
def test_influence_is_the_jackknife(make, score):
    counts = make()
    measured = stats.measure(counts, score)
    images = counts.shape[2]
    assert np.isnan(measured.values[..., 2]).all()
    for d, s in np.ndindex(2, 3):
        without = np.array([by_loop(counts[d, s], score, set(range(images)) - {i}) for i in range(images)])
        expected = (images - 1) * (without.mean(0) - without)
        np.testing.assert_allclose(measured.influence[:, d, s], expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(measured.values[d, s], by_loop(counts[d, s], score, range(images)), atol=1e-12)


@pytest.mark.parametrize(("make", "score"), [(region_counts, iou), (contour_counts, contour_f1)])
def test_bootstrap_is_a_loop_over_resamples(make, score, monkeypatch):
    counts = make()
    drawn = ranking.bootstrap(counts, score, 50)
    weights = np.concatenate(list(ranking._multinomial(12, 50, 7, 0))).astype(int)
    assert (weights.sum(1) == 12).all()
    for r, d, s in np.ndindex(50, 2, 3):
        expected = by_loop(counts[d, s], score, np.repeat(range(12), weights[r]))
        np.testing.assert_allclose(drawn[r, d, s], expected, rtol=0, atol=1e-12)
    monkeypatch.setattr(ranking, "CHUNK_NUMBERS", 1)
    np.testing.assert_array_equal(ranking.bootstrap(counts, score, 50), drawn)
    assert not np.array_equal(ranking.bootstrap(counts, score, 50, seed=1), drawn, equal_nan=True)


def test_bootstrap_has_the_spread_of_scipys():
    counts = region_counts(1, 1, 60)[..., :3]  # without the rare class, which SciPy leaves out where it is not drawn

    def score(chosen):
        return mean_over_classes(iou(counts[0, 0, chosen.astype(int)].sum(0)))

    theirs = reference.bootstrap((np.arange(60),), score, n_resamples=3000, vectorized=False, rng=1, method="basic")
    ours = ranking.bootstrap(counts, resamples=3000)[..., -1].std(ddof=1)
    assert ours == pytest.approx(theirs.standard_error, rel=0.05)


def test_sums_are_exact():
    counts = np.full((1, 1, 1449, 3, 1), 2_000_001)
    counts[:, :, ::2, 0] = 1_999_999
    weights = np.concatenate(list(ranking._multinomial(1449, 20, 20, 0))).astype(int)
    exact = [sum(int(w) * int(c) for w, c in zip(row, counts[0, 0, :, 0, 0], strict=True)) for row in weights]
    union = [2 * 1449 * 2_000_001 - e for e in exact]
    assert ranking.bootstrap(counts, resamples=20)[:, 0, 0, 0].tolist() == [
        e / u for e, u in zip(exact, union, strict=True)
    ]


def test_without_image_noise_it_is_the_paired_t_test():
    rng = np.random.default_rng(3)
    measured = scores(2, 5, 40, rng, [0.5, 0.52], by_seed=0.02)
    a, b = measured.values[..., 0]
    test = reference.ttest_rel(b, a)
    found = stats.differences(measured, 0)[1][-1]
    interval = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(test.pvalue)
    one = reference.ttest_1samp(a, 0).confidence_interval(0.95)
    cell = stats.intervals(measured)[0][0]
    assert (cell.low, cell.high) == pytest.approx((one.low, one.high))
    assert cell.scope == "the recipe"


def test_components_of_the_variance_are_found():
    """Mean over many sweeps of each estimate against the variance that was put in."""
    rng = np.random.default_rng(0)
    sd = {"by_seed": 0.02, "by_image": 0.3, "by_both": 0.2}
    spreads = [stats.intervals(scores(1, 4, 50, rng, **sd))[0][0].spread for _ in range(2000)]
    mean = {name: np.mean([getattr(s, name) for s in spreads]) for name in vars(spreads[0])}
    assert mean["shared_images"] == pytest.approx(0.3**2 / 50, rel=0.05)
    assert mean["own_images"] == pytest.approx(0.2**2 / 50, rel=0.05)
    assert mean["between_seeds"] == pytest.approx(0.02**2 + 0.2**2 / 50, rel=0.1)


def test_few_images_mean_few_degrees_of_freedom():
    values = np.full((1, 1, 1), 0.5)
    for share, kurtosis in ((100, 1), (4, 25)):  # of 100 images those that matter, equally
        influence = np.zeros((100, 1, 1, 1))
        influence[:share:2], influence[1:share:2] = 1, -1
        spread = stats.intervals(stats.Measured(values, influence))[0][0].spread
        assert spread.df_images == pytest.approx(min(200 / max(kurtosis - 1, 1e-9), 99))
        assert spread.shared_images == pytest.approx(share / (100 * 99))


def test_standard_error_for_other_numbers_by_hand():
    spread = stats.Spread(3, 500, between_seeds=0.03, shared_images=0.01, own_images=0.02, df_images=100)
    assert spread.at(3, 500) == pytest.approx((math.sqrt(0.02), 1 / (0.5 / 2 + 0.5 / 100)))
    assert spread.at(6, 500)[0] == pytest.approx(math.sqrt(0.03 / 6 + 0.01))
    assert spread.at(3, 1000)[0] == pytest.approx(math.sqrt((0.01 + 0.02 / 2) / 3 + 0.01 / 2))
    negative = stats.Spread(3, 500, between_seeds=0.03, shared_images=-0.01, own_images=0.02, df_images=100)
    assert negative.at(3, 500) == pytest.approx((0.1, 2))


@pytest.mark.parametrize("seeds", [1, 2, 3, 10])
def test_interval_and_p_agree(seeds):
    rng = np.random.default_rng(seeds)
    for _ in range(100):
        cell = stats.differences(scores(2, seeds, 30, rng, [0.5, 0.53], 0.02, 0.1, 0.02), 0)[1][-1]
        assert (cell.p < 0.05) == (not cell.low <= 0 <= cell.high)
        assert cell.p_holm == cell.p


def test_holm_by_hand():
    np.testing.assert_allclose(stats.holm([0.01, np.nan, 0.04, 0.03]), [0.03, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(stats.holm([0.9, 0.5]), [1, 1])
    assert stats.holm([]).size == 0


def test_holm_families_are_the_means_and_the_classes():
    counts = region_counts(decoders=3)
    found = stats.differences(stats.measure(counts), 1)
    assert set(found) == {0, 2}
    means = [row[-1] for row in found.values()]
    classes = [cell for row in found.values() for cell in row[:-1]]
    for family in (means, classes):
        np.testing.assert_allclose([c.p_holm for c in family], stats.holm([c.p for c in family]))
    assert math.isnan(found[0][2].value)
    assert found[0][2].verdict == ""


def test_verdicts():
    rng = np.random.default_rng(0)
    sd = {"by_seed": 0.002, "by_image": 0.1, "by_both": 0.01}
    rows = stats.differences(scores(4, 5, 2000, rng, [0.5, 0.6, 0.4, 0.5], **sd), 0)
    assert [row[-1].verdict for row in rows.values()] == ["better", "worse", "within noise"]
    few = stats.differences(scores(4, 3, 400, np.random.default_rng(7), [0.5, 0.505, 0.505, 0.505], **sd), 0)
    for cell in (row[-1] for row in few.values()):
        outside = cell.low > 0 or cell.high < 0
        assert outside == (cell.p < 0.05)
        wanted = "better" if cell.p_holm < 0.05 else "inconclusive" if outside else "within noise"
        assert cell.verdict == wanted
    assert "inconclusive" in {row[-1].verdict for row in few.values()}
    single = stats.differences(scores(2, 1, 2000, rng, [0.5, 0.6], **sd), 0)[1][-1]
    assert (single.verdict, single.scope, single.p < 0.05) == ("one seed", "this trained model", True)


def test_equal_counts_are_no_difference():
    counts = np.repeat(region_counts(1), 2, 0)
    cell = stats.differences(stats.measure(counts), 0)[1][-1]
    assert (cell.value, cell.low, cell.high, cell.p, cell.verdict) == (0, 0, 0, 1, "within noise")
    assert [r.p_best for r in ranking.ranks(stats.measure(counts), ranking.bootstrap(counts))] == [0.5, 0.5]


def test_one_decoder_and_bad_counts():
    counts = region_counts(1)
    measured = stats.measure(counts)
    assert stats.differences(measured, 0) == {}
    assert ranking.ranks(measured, ranking.bootstrap(counts, resamples=10)) == [ranking.Rank(1, 1, 1, 1.0)]
    with pytest.raises(ValueError, match="at least two of them, not 1"):
        stats.measure(counts[:, :, :1])
    with pytest.raises(ValueError, match="must be integers .*, not float64"):
        ranking.bootstrap(counts.astype(float))


def test_same_counts_same_answer():
    answers = []
    for _ in range(2):
        counts = region_counts(3, images=30)
        measured = stats.measure(counts)
        cells = [vars(row[-1]) for row in stats.differences(measured, 0).values()]
        answers.append((ranking.ranks(measured, ranking.bootstrap(counts, resamples=500)), cells))
    assert answers[0] == answers[1]


def test_ranks():
    rng = np.random.default_rng(1)
    measured = scores(4, 5, 1000, rng, [0.5, 0.6, 0.6, 0.3], by_seed=0.01, by_image=0.05)
    resampled = measured.values[None] + np.einsum(
        "ri,idsk->rdsk", rng.multinomial(1000, np.full(1000, 1e-3), 2000) / 1000, measured.influence
    )
    found = ranking.ranks(measured, resampled)
    assert [(r.low, r.high) for r in found] == [(3, 3), (1, 2), (1, 2), (4, 4)]
    assert sorted(r.rank for r in found) == [1, 2, 3, 4]
    assert sum(r.p_best for r in found) == pytest.approx(1)
    assert found[0].p_best + found[3].p_best < 0.02


@pytest.mark.parametrize(("seeds", "by_seed", "by_image"), [(3, 0.02, 0.0), (6, 0.02, 0.0), (1, 0.0, 0.2), (4, 0, 0.2)])
def test_p_best_of_two_is_the_one_sided_test(seeds, by_seed, by_image):
    """Paired t over seeds where only they differ, normal over images where only those do."""
    rng = np.random.default_rng(2)
    measured = scores(2, seeds, 400, rng, [0.5, 0.51], by_seed, by_image, by_image / 10)
    weights = rng.multinomial(400, np.full(400, 1 / 400), 20_000) / 400
    resampled = measured.values[None] + np.einsum("ri,idsk->rdsk", weights, measured.influence)
    gaps = measured.values[1, :, 0] - measured.values[0, :, 0]
    if by_seed:
        expected = reference.t.cdf(gaps.mean() / gaps.std(ddof=1) * math.sqrt(seeds), seeds - 1)
    else:
        spread = stats.differences(measured, 0)[1][0].spread
        variance = spread.shared_images + (spread.between_seeds / seeds if seeds > 1 else 0)
        expected = reference.norm.cdf(gaps.mean() / math.sqrt(variance))
    assert ranking.ranks(measured, resampled)[1].p_best == pytest.approx(expected, abs=0.015)


def test_power_is_that_of_the_t_test():
    for se, df in ((0.004, 2), (0.004, 7.3), (0.01, 30)):
        limit, shift = reference.t.isf(0.025, df), 0.01 / se
        exact = reference.nct.sf(limit, df, shift) + reference.nct.cdf(-limit, df, shift)
        assert stats.power(0.01, se, df) == pytest.approx(exact, abs=1e-4)
    assert stats.power(0.01, 0.0, 2) == 1


def test_needed_seeds_as_in_a_textbook():
    """Paired t test, difference of one standard deviation, power 0.8: 10 pairs (Cohen 1988)."""
    only_seeds = stats.Spread(3, 500, 0.01**2, 0.0, 0.0, 499)
    assert stats.needed(only_seeds, 0.01) == stats.Needed(10, None)
    corrected = stats.needed(only_seeds, 0.01, comparisons=4).seeds
    enough = [reference.nct.sf(reference.t.isf(0.05 / 8, n - 1), n - 1, math.sqrt(n)) >= 0.8 for n in range(2, 30)]
    assert corrected == 2 + enough.index(True)
    only_images = stats.Spread(1, 500, math.nan, 0.01**2, 0.0, 499)
    found = stats.needed(only_images, 0.01)
    assert found.seeds is None
    assert found.images == pytest.approx(500 * (1.96 + 0.8416) ** 2, rel=0.01)


def test_needed_is_none_where_the_other_part_is_too_large():
    spread = stats.Spread(3, 500, 0.01**2, 0.005**2, 0.006**2, 300)
    assert stats.needed(spread, 0.002) == stats.Needed(None, None)
    assert stats.needed(spread, 0.015).images is None  # seeds: 0.008 / sqrt(3), with t of 2 degrees of freedom
    large = stats.needed(spread, 0.1)
    assert large.seeds == 2
    assert large.images < 500
    with pytest.raises(ValueError, match="delta must be above 0"):
        stats.needed(spread, 0)


def test_needed_seeds_give_the_power():
    rng = np.random.default_rng(4)
    sd = {"by_seed": 0.01, "by_image": 0.05, "by_both": 0.1}
    images, root2 = 200, math.sqrt(2)  # of a difference: both decoders'
    own, shared = (root2 * 0.1) ** 2 / images, (root2 * 0.05) ** 2 / images
    spread = stats.Spread(3, images, (root2 * 0.01) ** 2 + own, shared, own, images - 1)
    seeds = stats.needed(spread, 0.025).seeds
    assert 4 <= seeds <= 20
    found = [stats.differences(scores(2, seeds, images, rng, [0.5, 0.525], **sd), 0)[1][0].p < 0.05 for _ in range(600)]
    low, high = share_band(0.77, 0.87)
    assert low <= np.mean(found) <= high


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("by_image", [0.0, 0.1, 0.5])
def test_coverage_for_normal_scores(seeds, by_image):
    """From seeds only to images mostly; the limits are those of the normal theory in docs/statistics.md."""
    rng = np.random.default_rng(seeds)
    cells = [
        stats.intervals(scores(1, seeds, 50, rng, 0.5, 0.02, by_image, by_image / 2))[0][0] for _ in range(2 * SWEEPS)
    ]
    low, high = share_band(0.94, 0.965, 2 * SWEEPS)
    assert low <= np.mean([c.low <= 0.5 <= c.high for c in cells]) <= high


def test_equal_decoders_are_noise_over_the_whole_table():
    """Holm: one false claim or more among four comparisons in 5 % of the sweeps or fewer; and ranks stay open."""
    rng = np.random.default_rng(0)
    sweeps = [scores(5, 3, 60, rng, 0.5, 0.02, 0.05, 0.05) for _ in range(SWEEPS)]
    claims = [any(r[-1].verdict in ("better", "worse") for r in stats.differences(m, 0).values()) for m in sweeps]
    assert np.mean(claims) <= share_band(0.0, 0.05)[1]


def test_rank_intervals_cover():
    rng = np.random.default_rng(0)
    means = [0.5, 0.505, 0.52, 0.55]
    hits = []
    for _ in range(200):
        measured = scores(4, 5, 60, rng, means, 0.01, 0.02, 0.02)
        found = ranking.ranks(measured, np.repeat(measured.values[None], 2, 0))
        hits.append([r.low <= rank <= r.high for r, rank in zip(found, (4, 3, 2, 1), strict=True)])
    assert (np.mean(hits, 0) >= share_band(0.95, 0.95, 200)[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("seed_noise", "seeds", "images"), [(0.1, 1, 100), (0.3, 3, 100), (0.1, 10, 100)])
def test_coverage_in_simulated_sweeps(simulation, seed_noise, seeds, images):
    """`python benchmarks/bootstrap.py --coverage` is the long version."""
    hits = {n: np.mean(h) for n, h in simulation.simulate(seed_noise, seeds, images, 400).items()}
    low, high = share_band(0.935, 0.97, 400)
    for name in ("mIoU", "class 30 %", "Δ mIoU", "Δ class 30 %", "mean F1", "Δ mean F1"):
        assert low <= hits[name] <= high, name
    if seeds > 1:
        assert low <= hits["itself"] <= high
    if seeds == 3:  # what is avoided: the bootstrap over three seeds
        assert hits["Δ mIoU, percentiles"] < low


def spread_of(measured, resamples=500):
    """Draws of resampled images, the same ones for each call."""
    images = len(measured.influence)
    weights = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), resamples) / images
    resampled = measured.values[None] + np.einsum("ri,idsk->rdsk", weights, measured.influence)
    return ranking.joint_draws(measured, resampled[..., -1])


def test_rank_correlation_is_that_of_scipy():
    """Of each draw too, ties among them."""
    rng = np.random.default_rng(5)
    means, draws = rng.integers(0, 4, (2, 6)).astype(float), rng.integers(0, 5, (2, 300, 6)).astype(float)
    value, low, high = ranking.rank_correlation(means, draws)
    rows = [reference.spearmanr(*pair).statistic for pair in zip(*draws, strict=True)]
    bottom, top = np.quantile(rows, [0.025, 0.975])
    assert value == pytest.approx(reference.spearmanr(*means).statistic)
    assert (low, high) == pytest.approx((max(-1, min(bottom, 2 * value - top)), min(1, max(top, 2 * value - bottom))))
    assert all(math.isnan(v) for v in ranking.rank_correlation([np.ones(6), means[1]], draws))


@pytest.mark.parametrize(("gap", "widest"), [(0.002, 2.0), (0.01, 1.4), (0.1, 0.1)])
def test_rank_correlation_covers(gap, widest):
    """Steps between decoders from a third of the noise of a mean, which no interval can settle, to many times it."""
    rng = np.random.default_rng(6)
    hits, widths = [], []
    for _ in range(200):
        orders = [0.5 + gap * rng.permutation(6) for _ in range(2)]
        found = [scores(6, 3, 60, rng, order, 0.01, 0.02, 0.02) for order in orders]
        means = [m.values[..., -1].mean(1) for m in found]
        _, low, high = ranking.rank_correlation(means, [spread_of(m) for m in found])
        hits.append(low - 1e-9 <= reference.spearmanr(*orders).statistic <= high + 1e-9)
        widths.append(high - low)
    assert np.mean(hits) >= share_band(0.9, 0.95, 200)[0]
    assert np.mean(widths) <= widest

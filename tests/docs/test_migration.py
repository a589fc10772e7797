"""Rows of docs/migration.md: what the code of other repositories computes, written out plainly, against ours.

Facts are from the commits that the page names; the code here is our own.
"""

import math
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip import get_tokenizer
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torchvision import transforms

from promptreid import ContrastiveLoss, CrossModalIDLoss, PromptConfig, PromptedCLIP, Recipe, TwoStageSchedule
from promptreid.data.samplers import EpochSampler, IdentitySampler
from promptreid.data.transforms import TrainTransform
from promptreid.losses.contrastive import NITCLoss, SDMLoss
from promptreid.model.text import PromptedTextEncoder
from promptreid.model.vision import PromptedVisionEncoder
from promptreid.training.stage import rate_factor

PAGE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")
SOLVER = {"algorithm": "adam", "epsilon": 1e-3, "max_norm": None, "weight_decay": 4e-5}


@pytest.fixture
def batch():
    """Eight pairs of five persons."""
    images, texts = torch.randn(2, 8, 16, dtype=torch.float64)
    return images.requires_grad_(), texts, torch.tensor([0, 1, 0, 2, 3, 1, 4, 0])


def cosines(images, texts):
    return (images / images.norm(dim=1, keepdim=True)) @ (texts / texts.norm(dim=1, keepdim=True)).T


def same_values_and_gradients(ours, theirs, images):
    gradients = [torch.autograd.grad(loss, images)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-12)


def irra_sdm(images, texts, ids, scale, epsilon=1e-8):
    wanted = (ids[:, None] == ids[None, :]).double()
    wanted = wanted / wanted.sum(1, keepdim=True)
    total = 0
    for scores in (scale * cosines(images, texts), scale * cosines(images, texts).T):
        share = scores.softmax(1)
        total = total + (share * (share.log() - (wanted + epsilon).log())).sum(1).mean()
    return total


def test_irra_itc_is_the_contrastive_loss_with_the_same_person_negative_and_not_our_default(batch):
    images, texts, ids = batch
    scores, own = cosines(images, texts) / 0.02, torch.arange(8)
    theirs = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    same_values_and_gradients(ContrastiveLoss(0.02, same_person="negative")(images, texts, ids), theirs, images)
    assert abs(ContrastiveLoss(0.02)(images, texts, ids) - theirs) > 1e-2
    assert '`same_person="negative"` and `stage_one_epochs=0`' in PAGE


def test_irra_sdm_is_the_sdm_loss(batch):
    images, texts, ids = batch
    same_values_and_gradients(SDMLoss(0.02)(images, texts, ids), irra_sdm(images, texts, ids, 50), images)


def test_irra_id_is_the_identity_loss_with_the_same_start(batch):
    images, texts, ids = batch
    loss = CrossModalIDLoss(5, 16).double()
    weight, bias = loss.classifier.weight, loss.classifier.bias
    theirs = (F.cross_entropy(images @ weight.T + bias, ids) + F.cross_entropy(texts @ weight.T + bias, ids)) / 2
    same_values_and_gradients(loss(images, texts, ids), theirs, images)
    assert CrossModalIDLoss(1000, 512).classifier.weight.std().item() == pytest.approx(0.001, rel=0.01)
    assert not bias.any()


@pytest.mark.parametrize(
    ("settings", "loss"), [({"matching": "sdm"}, "sdm"), ({"same_person": "negative"}, "contrastive")]
)
def test_irra_recipe_is_one_stage_of_encoders_with_its_solver(clip, settings, loss):
    model = PromptedCLIP(clip, PromptConfig(text_length=0, vision_length=0))
    (stage,) = TwoStageSchedule(model, Recipe(num_identities=5, stage_one_epochs=0, **SOLVER, **settings))
    assert (stage.trains, list(stage.loss_modules)) == (("encoders",), [loss, "identity"])
    stage.prepare()
    optimizer = stage.optimizer()
    assert type(optimizer) is torch.optim.Adam
    assert (optimizer.defaults["eps"], optimizer.defaults["betas"], stage.max_norm) == (1e-3, (0.9, 0.999), None)
    rates = {
        parameter: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert rates[clip.visual.conv1.weight] == (1e-5, 4e-5)
    assert rates[clip.ln_final.bias] == (1e-5, 0.0)  # IRRA: twice the rate
    assert rates[clip.ln_final.weight] == (1e-5, 0.0)  # IRRA: decays
    assert rates[stage.loss_modules["identity"].classifier.weight] == (5e-5, 4e-5)
    with_stage_one = Recipe(num_identities=5, **settings)
    assert len(TwoStageSchedule(PromptedCLIP(model.detach()), with_stage_one)) == 2


def test_irra_schedule_has_the_same_rate_at_the_start_of_each_epoch():
    steps, epochs, warm = 7, 60, 5
    for epoch in range(epochs):
        if epoch < warm:
            theirs = 0.1 * (1 - epoch / warm) + epoch / warm
        else:
            theirs = 0.5 * (1 + math.cos(math.pi * (epoch - warm) / (epochs - warm)))
        assert rate_factor(epoch * steps, total=epochs * steps, warmup=warm * steps) == pytest.approx(theirs)
    assert Recipe().warmup_share * 60 == pytest.approx(5)


def test_irra_batches_are_full_and_hold_four_pairs_of_each_person():
    assert [len(batch) for batch in EpochSampler(10, batch_size=4, seed=0)] == [4, 4]
    assert [len(batch) for batch in EpochSampler(10, batch_size=4, seed=0, drop_last=False)] == [4, 4, 2]
    ids = torch.arange(6).repeat_interleave(5)
    for batch in IdentitySampler(ids, identities_per_batch=2, pairs_per_identity=4, seed=0):
        assert sorted(torch.unique(ids[batch], return_counts=True)[1].tolist()) == [4, 4]


def test_mirroring_alone_mirrors_half_of_the_images_and_does_nothing_else(clip):
    model = PromptedCLIP(clip)
    code = next(text for text in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "def mirrored" in text)
    names = {"model": model}
    exec(code.split("pairs = ")[0], names)
    image = Image.fromarray(torch.arange(32 * 16 * 3).remainder(251).to(torch.uint8).reshape(32, 16, 3).numpy())
    plain = model.eval_transform(image)
    made = [names["mirrored"](image) for _ in range(200)]
    same = sum(torch.equal(each, plain) for each in made)
    turned = sum(torch.equal(each, plain.flip(-1)) for each in made)
    assert same + turned == 200
    assert 70 < same < 130


def test_rde_infonce_is_the_contrastive_loss_with_the_same_person_negative(batch):
    images, texts, ids = batch
    scores = 50 * cosines(texts, images)
    per_pair = -(scores.softmax(1).diag().log() + scores.T.softmax(1).diag().log()) / 2
    same_values_and_gradients(
        ContrastiveLoss(0.02, same_person="negative")(images, texts, ids), per_pair.mean(), images
    )


def test_tbps_clip_nitc_is_soft_labelled_with_a_learned_temperature(batch):
    images, texts, ids = batch
    loss = NITCLoss().double()
    log_scale = torch.tensor(math.log(1 / 0.07), dtype=torch.float64, requires_grad=True)
    hard = (ids[:, None] == ids[None, :]).double()
    hard = hard / hard.sum(1, keepdim=True)
    theirs = 0
    for scores in (log_scale.exp() * cosines(images, texts), log_scale.exp() * cosines(images, texts).T):
        soft = scores.softmax(1).detach()
        theirs = theirs - ((0.5 * soft + 0.5 * hard) * scores.log_softmax(1)).sum(1).mean() / 2
    ours = loss(images, texts, ids)
    learned = loss.temperature.logit_scale
    (their_gradient,) = torch.autograd.grad(theirs, log_scale, retain_graph=True)
    (our_gradient,) = torch.autograd.grad(ours, learned, retain_graph=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-5, atol=1e-9)
    assert abs(ContrastiveLoss(0.07)(images, texts, ids) - theirs) > 1e-2


def test_tbps_clip_reads_captions_without_punctuation_and_we_read_it():
    def theirs(caption):
        return re.sub(r"\s{2,}", " ", re.sub(r"([.!\"()*#:;~])", " ", caption.lower())).strip()

    ours = get_tokenizer("ViT-B-32")
    for caption in ("A Woman in red; she has a bag (black).", "A tall man!"):
        assert not torch.equal(ours([caption]), ours([theirs(caption)]))
    assert torch.equal(ours(["A Woman, in RED"]), ours([theirs("A Woman, in RED")]))
    assert "captions are used unchanged" in PAGE


def test_tbps_clip_ritc_is_half_of_the_sdm_loss(batch):
    images, texts, ids = batch
    hard = (ids[:, None] == ids[None, :]).double()
    target = (hard / hard.sum(1, keepdim=True) + 1e-2).log()
    scores = cosines(images, texts) / 0.07
    theirs = sum(
        F.kl_div(target, each.log_softmax(1), log_target=True, reduction="batchmean") for each in (scores, scores.T)
    )
    same_values_and_gradients(0.5 * SDMLoss(0.07, epsilon=1e-2)(images, texts, ids), 0.5 * theirs, images)


def supcon(images, texts, ids):
    """CLIP-ReID's loss of stage 1, of dot products at a temperature of 1, both directions added."""
    mates, scores = (ids[:, None] == ids[None, :]).double(), images @ texts.T
    return sum(-((mates * each.log_softmax(1)).sum(1) / mates.sum(1)).mean() for each in (scores, scores.T))


def test_clip_reid_supcon_is_twice_the_contrastive_loss_of_unit_features_and_another_of_others(batch):
    images, texts, ids = batch
    loss = ContrastiveLoss(1.0, same_person="positive")
    theirs = supcon(F.normalize(images, dim=1), F.normalize(texts, dim=1), ids)
    same_values_and_gradients(2 * loss(images, texts, ids), theirs, images)
    assert abs(supcon(images, texts, ids) - theirs) > 1e-2
    assert "| SupCon, its loss of stage 1 | not offered: it compares dot products" in PAGE


def clip_reid_batches(ids, people, size):
    """Its and IRRA's: groups of each person's pairs, the rest left out, until too few persons have one."""
    groups = {}
    for person in set(ids):
        own = [index for index, each in enumerate(ids) if each == person]
        own = random.sample(own, len(own)) if len(own) >= size else random.choices(own, k=size)
        groups[person] = [own[start : start + size] for start in range(0, len(own) - size + 1, size)]
    while len(left := [person for person, own in groups.items() if own]) >= people:
        yield [index for person in random.sample(left, people) for index in groups[person].pop(0)]


def identity_batches(ids, people, size, epoch=0):
    sampler = IdentitySampler(ids, identities_per_batch=people, pairs_per_identity=size, seed=0)
    sampler.set_position(epoch=epoch)
    return list(sampler)


def test_clip_reid_sampler_deals_the_same_batches_where_every_person_has_whole_groups():
    random.seed(0)
    ids = [person for person in range(6) for _ in range(8)]
    for batches in (identity_batches(ids, 3, 4), list(clip_reid_batches(ids, 3, 4))):
        for batch in batches:
            assert sorted(Counter(ids[index] for index in batch).values()) == [4, 4, 4]
    assert sorted(index for batch in identity_batches(ids, 3, 4) for index in batch) == list(range(48))


def test_clip_reid_sampler_leaves_out_what_fills_no_group_and_ours_fills_it_up():
    random.seed(0)
    ids = [person for person, pairs in enumerate((3, 5, 6, 7, 4)) for _ in range(pairs)]
    for epoch in range(5):
        theirs, ours = list(clip_reid_batches(ids, 2, 4)), identity_batches(ids, 2, 4, epoch)
        for batch in theirs + ours:
            assert sorted(Counter(ids[index] for index in batch).values()) == [4, 4]
        assert (len(theirs), len(ours)) == (2, 4)  # there a group a person, of which two make a batch
        assert len({index for batch in theirs for index in batch}) <= 16
        assert {index for batch in ours for index in batch} == set(range(25))
    assert "left out of the epoch there, and completed with other pairs of the same person here" in PAGE


def boxes(erase, image, erased):
    """Top, left, height and width of the box that each of 2,000 calls erases, as shares; none in some."""
    height, width = image.shape[-2:]
    for _ in range(2000):
        found = erased(erase(image)[0]).nonzero()
        if len(found):
            (top, left), (bottom, right) = found.amin(0).tolist(), found.amax(0).tolist()
            tall, wide = bottom - top + 1, right - left + 1
            assert len(found) == tall * wide
            yield top / (height - tall), left / (width - wide), tall * wide / (height * width), math.log(tall / wide)


def same_boxes(ours, theirs):
    """Both erase half of the images, and the boxes are spread alike."""
    for found in (ours, theirs):
        assert len(found) / 2000 == pytest.approx(0.5, abs=0.04)
    for one, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        spread = torch.tensor(
            [sorted(one)[len(one) * tenth // 10] - sorted(other)[len(other) * tenth // 10] for tenth in range(1, 10)]
        )
        assert spread.abs().max() < 0.08 * (max(other) - min(other))


def test_irra_erases_the_same_boxes_with_the_numbers_of_the_mean():
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    white = torch.full((3, 96, 48), 255, dtype=torch.uint8)
    own = TrainTransform((96, 48), mean=mean, std=std)
    irra = transforms.RandomErasing(scale=(0.02, 0.4), value=list(mean))
    ours = list(boxes(own, white, lambda channel: channel == 0))  # the mean colour, once normalised
    theirs = list(boxes(irra, torch.ones(3, 96, 48), lambda channel: channel == mean[0]))
    same_boxes(ours, theirs)
    assert std[0] * mean[0] > 0.1  # so much lighter is the colour whose normalised value is the mean
    assert (TrainTransform((384, 128), mean=mean, std=std).padding, own.padding) == (10, 2)
    assert "IRRA with the numbers of the mean after normalisation, a lighter grey" in PAGE


def test_clip_reid_erases_a_third_at_most_with_noise():
    random.seed(0)
    half = (0.5, 0.5, 0.5)
    white = torch.full((3, 64, 32), 255, dtype=torch.uint8)
    own = TrainTransform((64, 32), mean=half, std=half)
    noise = RandomErasing(probability=0.5, mode="pixel", max_count=1, device="cpu")
    ours = list(boxes(own, white, lambda channel: channel == 0))
    theirs = list(boxes(lambda image: noise(image.clone()), torch.full((3, 64, 32), 9.0), lambda channel: channel != 9))
    assert len(theirs) / 2000 == pytest.approx(0.5, abs=0.04)
    assert 0.30 < max(area for _, _, area, _ in theirs) < 0.36 < max(area for _, _, area, _ in ours) < 0.43
    assert TrainTransform((256, 128), mean=half, std=half).padding == 7
    assert "CLIP-ReID 2 to 33 % with noise" in PAGE


def ivlp_images(clip, images, prompts):
    """IVLP's image tower: the first prompts before ln_pre, the others in their place block by block."""
    visual, count = clip.visual, prompts.shape[1]
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    sequence = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], 1) + visual.positional_embedding
    sequence = visual.ln_pre(torch.cat([sequence, prompts[0].expand(len(images), -1, -1)], 1))
    for index, block in enumerate(visual.transformer.resblocks):
        if 0 < index < len(prompts):
            sequence = torch.cat([sequence[:, :-count], prompts[index].expand(len(images), -1, -1)], 1)
        sequence = block(sequence)
    return visual.ln_post(sequence[:, 0]) @ visual.proj


def ivlp_texts(clip, tokens, prompts):
    """IVLP's text tower: prompts after the start token, which take the positions that follow it at the first block."""
    count = prompts.shape[1]
    embedded = clip.token_embedding(tokens)
    sequence = torch.cat([embedded[:, :1], prompts[0].expand(len(tokens), -1, -1), embedded[:, 1:-count]], 1)
    sequence = sequence + clip.positional_embedding
    mask = torch.full((sequence.shape[1],) * 2, -torch.inf).triu(1)
    for index, block in enumerate(clip.transformer.resblocks):
        if 0 < index < len(prompts):
            own = prompts[index].expand(len(tokens), -1, -1)
            sequence = torch.cat([sequence[:, :1], own, sequence[:, 1 + count :]], 1)
        sequence = block(sequence, attn_mask=mask)
    ends = tokens.argmax(1) + count
    return clip.ln_final(sequence)[torch.arange(len(tokens)), ends] @ clip.text_projection


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_ivlp_prompts_compute_the_same_here_once_converted(clip, images, tokens, depth):
    theirs = {"image": 0.02 * torch.randn(depth, 2, 32), "text": 0.02 * torch.randn(depth, 2, 24)}
    with torch.no_grad():
        wanted = ivlp_images(clip, images, theirs["image"]), ivlp_texts(clip, tokens, theirs["text"])
        image = theirs["image"].clone()
        image[0] = clip.visual.ln_pre(image[0])
        text = theirs["text"].clone()
        text[1:] -= clip.positional_embedding[1:3]
        vision = PromptedVisionEncoder(clip, 2, depth=depth).eval()
        caption = PromptedTextEncoder(clip, 2, depth=depth, position_embedding=True).eval()
        vision.prompts.tokens.copy_(image)
        caption.prompts.tokens.copy_(text)
        for found, expected in zip((vision(images), caption(tokens)), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_page_names_only_options_that_we_have():
    from dataclasses import fields

    ours = set(
        re.findall(
            r"`((?:stage_\w+|matching|same_person|max_norm|epsilon|algorithm|betas|warmup_share|\w*temperature))=", PAGE
        )
    )
    assert ours <= {field.name for field in fields(Recipe)}
    assert not re.search(r"\| `loss\.", PAGE)  # TBPS-CLIP's losses are under `experiment`

"Segmentation from masks to predictions: what is learned, what is refused, and where each pixel of an answer lies."
import json
import numpy as np, pytest, torch
from fastai.data.all import DataBlock, IndexSplitter
from fastai.metrics import mae
from fastai.torch_core import set_seed
from fastai.vision.all import MSELossFlat, PILImageBW, Resize, TensorMask, get_image_files, resnet18
from fastai.vision.all import MaskBlock as Plain
from PIL import Image
from learnkit.core import DataError, NotFound
from learnkit.data.blocks import ClassMask, ImageBlock, MaskBlock, TensorClasses
from learnkit.data.doodles import write_doodles
from learnkit.data.images import open_image
from learnkit.data.formats import read_coco
from learnkit.data.masks import IGNORE, class_numbers, read_masks
from learnkit.data.records import Record
from learnkit.task.classification import classification_dls
from learnkit.task.segmentation import (class_counts, mask_facts, mask_of, segmentation_block, segmentation_dls, segmentation_learner, show_masks,
    unet_learner)
from learnkit.train.pixels import MeanIoU, PixelLoss
from learnkit.use.bundle import load_learner
import learnkit.use.interpret # chkstyle: ignore

@pytest.fixture(scope='module')
def drawn(tmp_path_factory): return write_doodles(tmp_path_factory.mktemp('drawn')/'parts', n=30, size=64, seed=5)

@pytest.fixture(scope='module')
def records(drawn): return read_masks(drawn, images='.', masks='parts')

@pytest.fixture(scope='module')
def learn(records, tmp_path_factory):
    return segmentation_learner(segmentation_dls(records, size=48, bs=8), pretrained=False, path=tmp_path_factory.mktemp('work'), precision='fp32')

def halves(folder, n=6, size=(60, 40), values=(0, 1), ignored=0):
    "Pictures that are red on the left and blue on the right, with masks that say so; the first `ignored` rows of a mask are 255."
    for k in ('images', 'labels'): (folder/k).mkdir(parents=True)
    (folder/'codes.txt').write_text('red\nblue\n')
    w,h = size
    for i in range(n):
        cut = 12+(7*i) % (w-24)
        a,m = np.zeros((h, w, 3), np.uint8),np.full((h, w), values[0], np.uint8)
        a[:,:cut,0],a[:,cut:,2],m[:,cut:] = 255,255,values[1]
        m[:ignored] = IGNORE
        Image.fromarray(a).save(folder/'images'/f'{i}.png'), Image.fromarray(m).save(folder/'labels'/f'{i}.png')
    return folder

# Batches

def test_batches_hold_classes(records):
    dls = segmentation_dls(records, size=(32, 40), bs=4)
    x,y = dls.one_batch()
    assert x.shape == (4,3,32,40) and y.shape == (4,32,40) and y.dtype == torch.long and isinstance(y, TensorMask) and dls.vocab == dls.about['classes']
    assert len(dls.vocab) == 11 and dls.vocab[0] == 'background'

@pytest.mark.parametrize('method', ['squish', 'pad'])
def test_masks_move_with_pictures(tmp_path, method):
    dls = segmentation_dls(read_masks(halves(tmp_path/'d', 12)), size=48, bs=8, method=method, augment=2., valid=.2)
    for _ in range(3):
        x,y = dls.one_batch()
        x,y = (o.as_subclass(torch.Tensor) for o in dls.train.decode((x, y)))
        lit = x.amax(1) > .4*x.amax()
        blue = x[:,2] > x[:,0]
        assert ((y == 1) == blue)[lit & (y != IGNORE)].float().mean() > .97
        assert (y == IGNORE).any() == (method == 'pad') and {*y.unique().tolist()} <= {0, 1, IGNORE}

def test_what_is_kept_changes_nothing(records):
    for split in (0, 1):
        a,b = (segmentation_dls(records, size=40, bs=4, augment=0, decode_cache=o)[split].new(shuffle=False) for o in (None, 0))
        for (x,y),(u,v) in zip(a, b): assert (y == v).all() and (x-u).abs().mean() < .02

def test_pictures_are_kept_at_their_size(records):
    dls = segmentation_dls(records, size=40, bs=4)
    dls.train.before_iter()
    assert dls.train.fit[:2] == (40,40) and '40 by 40' in dls.train.plan()

def test_shapes_of_objects_become_masks(drawn, tmp_path):
    rs = read_coco(drawn/'boxes.json', what='semantic')
    dls = segmentation_dls(rs, size=48, bs=4)
    assert dls.vocab == ['background', 'cat', 'dog'] and {*dls.one_batch()[1].unique().tolist()} <= {0, 1, 2}
    both = read_coco(drawn/'boxes.json')
    assert segmentation_dls(both, size=48, bs=4).vocab == ['background', *both.about['classes']]

def test_one_block_for_files_and_records(tmp_path):
    folder = halves(tmp_path/'d')
    block = DataBlock((ImageBlock, MaskBlock(['red', 'blue'])), get_items=lambda p: get_image_files(p/'images'), get_y=lambda o: folder/'labels'/o.name, splitter=IndexSplitter([0]))
    dls = block.dataloaders(folder, bs=2, num_workers=0)
    y = dls.one_batch()[1]
    assert isinstance(y, TensorClasses) and y.unique().tolist() == [0, 1] and dls.vocab == ['red', 'blue']
    dls = segmentation_block(['red', 'blue'], size=24).dataloaders(read_masks(folder), bs=2)
    assert dls.one_batch()[1].shape == (2,24,24)

def test_a_palette_keeps_its_numbers(tmp_path):
    im = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), 'P')
    im.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    im.save(tmp_path/'m.png')
    block = MaskBlock(list('abc'))
    assert np.array(block.type_tfms[0].encodes(tmp_path/'m.png')).tolist() == [[0, 1], [2, 1]]

def test_bad_records(tmp_path, drawn):
    folder = halves(tmp_path/'d', values=(0, 255))
    with pytest.raises(DataError, match=r'mask_map=\{0: 0, 255: 1\}'): segmentation_dls(folder)
    rs = read_masks(folder, mask_map={0: 0, 255: 1})
    assert segmentation_dls(rs, bs=2).vocab == ['red', 'blue']
    with pytest.raises(DataError, match='read_masks'): segmentation_dls([Record(folder/'images'/'0.png', label='x')])
    with pytest.raises(DataError, match='vocab='): segmentation_dls([Record(folder/'images'/f'{i}.png', mask=folder/'labels'/f'{i}.png') for i in range(4)])
    with pytest.raises(DataError, match='no records'): segmentation_dls([])
    with pytest.raises(NotFound, match=r'no folder .*images. .* holds parts, train, valid; name the right one with images='): segmentation_dls(drawn)
    with pytest.raises(DataError, match='no masks to learn.*segmentation_dls'): segmentation_learner(classification_dls(drawn, size=32, bs=4))
    with pytest.raises(NotFound, match='squish'): segmentation_dls(rs, method='squsih')
    with pytest.raises(TypeError, match='Did you mean bs'): segmentation_dls(rs, bz=3)

# Answers

@pytest.mark.parametrize('method', ['squish', 'pad', 'crop'])
def test_each_pixel_has_its_place(method):
    truth = np.zeros((30, 80), np.uint8)
    truth[:15,30:60],truth[15:,50:] = 1,2
    resize = Resize((60, 60), method=method, pad_mode='zeros')
    seen = np.array(resize(ClassMask(Image.fromarray(truth)), split_idx=1))
    probs = torch.nn.functional.one_hot(torch.from_numpy(seen).long().clamp(max=3), 4).permute(2, 0, 1).float()
    for at_once in (4_000_000, 500):
        got = mask_of(probs, (80, 30), resize, at_once)
        known = got != IGNORE
        assert got.shape == (30,80) and (got == truth)[known].mean() > .98 and known.all() == (method != 'crop')
        assert known.mean() == pytest.approx(1 if method != 'crop' else 30/80)

def test_facts_tell_the_whole_mask(records):
    r = records[0]
    ids = class_numbers(r)
    facts = mask_facts(ids, records.about['classes'])
    assert facts['labels'][0] == 'background' and sum(facts['shares']) == pytest.approx(1) and facts['shares'] == sorted(facts['shares'])[::-1]
    ax = show_masks(open_image(r.image), json.loads(json.dumps(facts)), about=records.about)
    drawn = ax.images[0].get_array()
    ax = show_masks(open_image(r.image), ids, about=records.about)
    assert (drawn == ax.images[0].get_array()).all()
    assert [t.get_text() for t in ax.figure.legends[0].get_texts()] == [o for o in records.about['classes'][1:] if o in facts['labels']]

def test_predict_gives_the_size_of_the_file(learn, tmp_path):
    im = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8))
    notes = Image.Exif()
    notes[0x0112] = 6
    im.save(tmp_path/'phone.jpg', exif=notes)
    for item,size in ((im, (50, 90)), (tmp_path/'phone.jpg', (90, 50))):
        p = learn.predict(item)
        assert p[0].shape == size and p[0].dtype == np.uint8 and p[1].shape == (48,48) and p[2].shape == (11,48,48)
        assert p._repr_png_()[:4] == b'\x89PNG' and f'{size[1]} × {size[0]}' in repr(p)
        assert p.labels == [learn.dls.vocab[k] for k in np.argsort(-np.bincount(p[0].ravel()), kind='stable')[:len(p.labels)]]

def test_results_have_a_legend_and_both_masks(learn):
    axs = learn.show_results(max_n=4)
    assert len(axs) == 4 and axs[0].images[0].get_array().shape[1] == 2*48+2 and len(axs[0].figure.legends) == 1
    assert len(learn.dls.show_batch(max_n=4)[0].figure.legends) == 1

def test_twice_is_the_mean(learn):
    (preds,targs),(once,_) = learn.tta(),learn.get_preds()
    assert preds.shape == once.shape and torch.allclose(preds.sum(1), torch.ones(len(preds), 48, 48), atol=1e-4) and not torch.equal(preds, once)

# Large pictures

def test_tiles(learn, records):
    im = open_image(records[0].image)
    whole = learn.predict(im.resize((48, 48)))
    one = learn.predict_tiles(im.resize((48, 48)))
    assert (one[0] == whole[0]).mean() > .999
    for size,kw in (((131, 77), {}), ((48, 200), dict(tile=(40, 32), overlap=.5)), ((20, 30), {}), ((97, 97), dict(overlap=0, bs=3))):
        p = learn.predict_tiles(im.resize(size), **kw)
        assert p[0].shape == size[::-1] and p[0].max() < 11 and sum(p.shares) == pytest.approx(1)
    four = Image.new('RGB', (96, 96))
    for at in ((0, 0), (48, 0), (0, 48), (48, 48)): four.paste(im.resize((48, 48)), at)
    assert (learn.predict_tiles(four, overlap=0)[0] == np.tile(whole[0], (2, 2))).mean() > .999
    with pytest.raises(DataError, match='share'): learn.predict_tiles(im, overlap=1)

# Learners

@pytest.mark.parametrize('decoder', ['unet', 'fcn', 'segnet', 'deeplab', 'lraspp'])
def test_every_decoder_learns_halves_and_travels(decoder, tmp_path):
    set_seed(3)
    rs = read_masks(halves(tmp_path/'d', 12, ignored=5), valid=.25, ignore=[IGNORE])
    learn = segmentation_learner(segmentation_dls(rs, size=32, bs=4, augment=0, seed=1), decoder=decoder, path=tmp_path, precision='fp32')
    learn.fine_tune(5)
    assert learn.results['mIoU'] > .5 and learn.arch == 'tiny' and learn.pretrained
    again = load_learner(learn.export('m.learnkit'))
    assert again.model_kw['decoder'] == decoder and (again.predict(rs[0].image)[0] == learn.predict(rs[0].image)[0]).all()
    assert again.dls.vocab == ['red', 'blue'] and again.predict(rs[0].image)._repr_png_()

def test_decoder_arguments(learn):
    wide = segmentation_learner(learn.dls, 'small', pretrained=False, decoder_kw=dict(width=8))
    assert sum(p.numel() for p in wide.model.parameters()) < 300_000
    with pytest.raises(NotFound, match='unet'): segmentation_learner(learn.dls, decoder='unnet')
    with pytest.raises(TypeError, match='widht'): segmentation_learner(learn.dls, pretrained=False, decoder_kw=dict(widht=8))
    with pytest.raises(TypeError, match='Did you mean decoder'): segmentation_learner(learn.dls, decodr='unet')

def test_class_weights(learn):
    n = class_counts(learn.dls)
    assert n.sum() == sum(class_numbers(r).size for r in learn.dls.train_ds.items)
    loss = segmentation_learner(learn.dls, pretrained=False, class_weights='balanced').loss_func
    assert loss.weights[n.argmax()] < loss.weights[n.argmin()]
    assert segmentation_learner(learn.dls, pretrained=False, class_weights=[1.]*11).loss_func.weights.tolist() == [1]*11
    with pytest.raises(TypeError, match='both'): segmentation_learner(learn.dls, class_weights='balanced', loss_func=PixelLoss())
    with pytest.raises(NotFound, match='balanced'): segmentation_learner(learn.dls, class_weights='balancd')

def test_grey_pictures(tmp_path):
    folder = halves(tmp_path/'d')
    for f in (folder/'images').iterdir(): open_image(f).convert('L').save(f)
    block = DataBlock((ImageBlock(PILImageBW), MaskBlock(['red', 'blue'])), splitter=IndexSplitter([0]), n_inp=1, item_tfms=Resize(32, 'squish'))
    dls = block.dataloaders(read_masks(folder), bs=2, num_workers=0)
    net = segmentation_learner(dls, 'small', pretrained=False)
    assert net.model(torch.zeros(1, 1, 32, 32)).shape == (1,2,32,32)

# fastai's name

def fastai_dls(folder, **kw):
    block = DataBlock((ImageBlock, MaskBlock(['red', 'blue'])), get_items=lambda p: get_image_files(p/'images'), get_y=lambda o: folder/'labels'/o.name,
        splitter=IndexSplitter([0, 1]), item_tfms=Resize(32, 'squish'), **kw)
    return block.dataloaders(folder, bs=2, num_workers=0)

@pytest.mark.parametrize('arch', ['vgg11', 'mobilenet_v3_small', resnet18])
def test_a_unet_of_any_body(tmp_path, arch):
    learn = unet_learner(fastai_dls(halves(tmp_path/'d')), arch, pretrained=False)
    assert len(learn.model.skips) >= 4
    learn.fit_one_cycle(1, 1e-3)

def test_masks_that_are_no_classes(tmp_path):
    with pytest.raises(DataError, match=r'hold 0, 255, and the 2 classes.*mask_map'):
        unet_learner(plain_dls(halves(tmp_path/'d', values=(0, 255))), resnet18, pretrained=False)

def plain_dls(folder):
    block = DataBlock((ImageBlock, Plain(['red', 'blue'])), get_items=lambda p: get_image_files(p/'images'), get_y=lambda o: folder/'labels'/o.name,
        splitter=IndexSplitter([0, 1]), item_tfms=Resize(32))
    return block.dataloaders(folder, bs=2, num_workers=0)

def test_pictures_as_targets_go_to_fastai(tmp_path):
    folder = halves(tmp_path/'d')
    block = DataBlock((ImageBlock, ImageBlock), get_items=lambda p: get_image_files(p/'images'), splitter=IndexSplitter([0, 1]), item_tfms=Resize(32))
    learn = unet_learner(block.dataloaders(folder, bs=2, num_workers=0), resnet18, pretrained=False, n_out=3, loss_func=MSELossFlat(), metrics=mae)
    assert type(learn.model).__name__ == 'DynamicUnet'

# Real pictures

def test_camvid(real):
    dls = segmentation_dls(real('camvid'), size=(48, 64), bs=8)
    assert (len(dls.train_ds), len(dls.valid_ds), len(dls.vocab)) == (367, 101, 11) and not dls.problems
    learn = segmentation_learner(dls)
    learn.fit_one_cycle(1, 8e-3)
    assert learn.results['accuracy'] > .6 and MeanIoU.name in learn.results

def test_people(real):
    rs = read_masks(real('PennFudanPed'), images='PNGImages', masks='PedMasks', label='pedestrian', valid=.2)
    assert segmentation_dls(rs, size=64).vocab == ['background', 'pedestrian']

"""Write the scene of README.md with one tool's own exporter: python make.py TOOL FOLDER, where the tool is installed.

A picture of 48 x 36 pixels, "body" in columns 4 to 39 and rows 6 to 23, and "rear wheel" in columns 8 to 15 and rows 18
to 29, which lies on it.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 48, 36
BOXES = {"body": (4, 6, 40, 24), "rear wheel": (8, 18, 16, 30)}


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    Image.fromarray(np.dstack([rows * 4, columns * 4, rows + columns]).astype(np.uint8)).save(path)
    return path


def corners(name):
    left, top, right, bottom = BOXES[name]
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def painted(name):
    left, top, right, bottom = BOXES[name]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def labelme(out, form):
    from labelme import LabelFile, utils

    image = picture(out / "car 1.png")
    common = {"group_id": None, "description": "", "flags": {}}
    body = {"label": "body", "points": corners("body"), "shape_type": "polygon", "mask": None, **common}
    left, top, right, bottom = BOXES["rear wheel"]
    stamp = painted("rear wheel")[top:bottom, left:right]
    points = [[left, top], [right - 1, bottom - 1]]
    wheel = {"label": "rear wheel", "points": corners("rear wheel"), "shape_type": "polygon", "mask": None, **common}
    if form == "mask":
        wheel |= {"points": points, "shape_type": "mask", "mask": utils.img_arr_to_b64(stamp.astype(np.uint8))}
    LabelFile().save(
        filename=str(out / "car 1.json"),
        shapes=[body, wheel],
        image_path=image.name,
        image_height=HEIGHT,
        image_width=WIDTH,
        image_data=LabelFile.load_image_file(str(image)),
    )


def datumaro(out, form):
    import datumaro as dm

    labels = dm.LabelCategories.from_iterable(BOXES)
    shapes = []
    for index, name in enumerate(BOXES):
        common = {"label": index, "id": index + 1, "group": index + 1, "z_order": index}
        outline = [number for point in corners(name) for number in point]
        shapes.append(dm.Polygon(outline, **common) if form == "coco_instances" else dm.Mask(painted(name), **common))
    image = dm.Image.from_numpy(np.array(Image.open(picture(out.parent / "scene.png"))))
    item = dm.DatasetItem(id="car 1", subset="train", media=image, annotations=shapes)
    dataset = dm.Dataset.from_iterable([item], categories={dm.AnnotationType.label: labels})
    dataset.export(str(out), form, save_media=True, image_ext=".png")


def label_studio(out, form):
    from label_studio_sdk.converter import Converter
    from label_studio_sdk.converter.brush import mask2rle

    brush = "BRUSH" in form
    kind = "brushlabels" if brush else "polygonlabels"
    tag = "BrushLabels" if brush else "PolygonLabels"
    names = "".join(f'<Label value="{name}"/>' for name in BOXES)
    config = f'<View><Image name="image" value="$image"/><{tag} name="tag" toName="image">{names}</{tag}></View>'
    results = []
    for number, name in enumerate(BOXES):
        value = {kind: [name]}
        if brush:
            value |= {"format": "rle", "rle": mask2rle(painted(name).astype(np.uint8) * 255)}
        else:
            value |= {"points": [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in corners(name)], "closed": True}
        results.append(
            {"id": f"r{number}", "type": kind, "from_name": "tag", "to_name": "image", "value": value}
            | {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        )
    out.mkdir(parents=True, exist_ok=True)
    image = picture(out.parent / "upload" / "1a2b3c4d-car_1.png")
    task = {
        "id": 7,
        "data": {"image": "/data/upload/1/1a2b3c4d-car_1.png"},
        "annotations": [{"id": 3, "completed_by": {"email": "anna-lena@example.org", "id": 1}, "result": results}],
    }
    source = out.parent / "tasks.json"
    source.write_text(json.dumps([task]))
    converter = Converter(config, str(out.parent), upload_dir=str(out.parent / "upload"), download_resources=False)
    converter.convert(str(source), str(out), form, is_dir=False)
    source.unlink()
    places = {"COCO": out, "BRUSH_TO_COCO": out, "YOLO": out / "images", "BRUSH_TO_PNG": out}
    (places[form]).mkdir(exist_ok=True)
    image.rename(places[form] / image.name)
    image.parent.rmdir()


def supervision(out, form):
    import supervision as sv

    image = picture(out / "images" / "car 1.png")
    masks = np.array([painted(name) for name in BOXES])
    found = sv.Detections(xyxy=np.array([BOXES[name] for name in BOXES], float), mask=masks, class_id=np.arange(2))
    dataset = sv.DetectionDataset(classes=list(BOXES), images=[str(image)], annotations={str(image): found})
    if form == "yolo":
        dataset.as_yolo(annotations_directory_path=str(out / "labels"), data_yaml_path=str(out / "data.yaml"))
    else:
        dataset.as_coco(annotations_path=str(out / "annotations.json"))


def fiftyone(out, form):
    # Its exporters one by one: a whole data set of FiftyOne lies in a MongoDB server.
    import fiftyone as fo
    from fiftyone.utils.coco import COCODetectionDatasetExporter
    from fiftyone.utils.data.exporters import ImageSegmentationDirectoryExporter
    from fiftyone.utils.yolo import YOLOv5DatasetExporter

    image = picture(out.parent / "source" / "car 1.png")
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    detections = []
    for number, (name, (left, top, right, bottom)) in enumerate(BOXES.items(), 1):
        box = [left / WIDTH, top / HEIGHT, (right - left) / WIDTH, (bottom - top) / HEIGHT]
        detections.append(fo.Detection(label=name, bounding_box=box, mask=np.ones((bottom - top, right - left), bool)))
        numbers[painted(name)] = number
    label = fo.Detections(detections=detections)
    if form == "coco":
        exporter = COCODetectionDatasetExporter(export_dir=str(out), classes=list(BOXES))
    elif form == "yolo":
        exporter = YOLOv5DatasetExporter(export_dir=str(out), classes=list(BOXES), use_masks=True)
    else:
        exporter = ImageSegmentationDirectoryExporter(export_dir=str(out))
        label = fo.Segmentation(mask=numbers)
    with exporter:
        exporter.export_sample(str(image), label, metadata=fo.ImageMetadata.build_for(str(image)))


def pylabel(out):
    from pylabel import importer

    source = out.parent / "datumaro-coco"
    images = source / "images" / "train"
    dataset = importer.ImportCoco(str(source / "annotations" / "instances_train.json"), path_to_images=str(images))
    picture(out / "images" / "car 1.png")
    dataset.export.ExportToYoloV5(
        str(out / "labels"), yaml_file="dataset.yaml", copy_images=False, cat_id_index=0, segmentation=True
    )


def labelme2coco(out):
    import labelme2coco as tool

    out.mkdir()
    labelme(out, "polygon")
    tool.convert(str(out), str(out))
    (out / "car 1.json").unlink()


if __name__ == "__main__":
    tool, _, form = sys.argv[1].partition(":")
    globals()[tool.replace("-", "_")](Path(sys.argv[2]), *([form] if form else []))

// Boxes over a picture: road users thin and white, groups in the colour of their level.

import { riskType } from "./i18n.js";
import { levelName, rank } from "./text.js";

const colours = (() => {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => style.getPropertyValue(`--${name}`).trim();
  return { high: named("high"), medium: named("medium"), low: named("low"), none: named("none"), pending: named("pending"),
    object: "rgb(255 255 255 / 0.5)", ink: "#0b0e13" };
})();

/**
 * Draw the boxes of a frame on a canvas that lies over its picture.
 * @param {{group: object, known: ?{level: string, types: string[], final: boolean}}[]} judged
 */
export function drawBoxes(canvas, { width, height }, frame, judged) {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const scale = Math.min(width / frame.imageWidth, height / frame.imageHeight);
  const left = (width - frame.imageWidth * scale) / 2;
  const top = (height - frame.imageHeight * scale) / 2;
  const place = ([x1, y1, x2, y2]) => [left + x1 * scale, top + y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale];

  context.lineWidth = 1;
  context.strokeStyle = colours.object;
  for (const object of frame.detectedObjects) context.strokeRect(...place(object.bbox));

  const rising = [...judged].sort((a, b) => rank(a.known?.level) - rank(b.known?.level)); // the most dangerous on top
  for (const { group, known } of rising) drawGroup(context, place(group.bbox), known, width);
}

function drawGroup(context, box, known, width) {
  const colour = colours[known?.level ?? "pending"];
  const dangerous = rank(known?.level) >= rank("medium");
  context.lineWidth = dangerous ? 2.5 : 1.5;
  context.strokeStyle = colour;
  context.setLineDash(known?.final ? [] : [5, 4]);
  context.strokeRect(...box);
  context.setLineDash([]);
  if (!dangerous) return;
  const text = [levelName(known.level), known.types[0] && riskType(known.types[0])].filter(Boolean).join(" · ");
  context.font = "600 11px system-ui, sans-serif";
  const wide = Math.min(context.measureText(text).width + 10, width);
  const x = Math.max(0, Math.min(box[0] - 1.25, width - wide));
  const y = box[1] >= 18 ? box[1] - 17 : box[1];
  context.fillStyle = colour;
  context.fillRect(x, y, wide, 17);
  context.fillStyle = colours.ink;
  context.fillText(text, x + 5, y + 12, wide - 10);
}

/** Put a picture on a canvas, or make it black in the frame's own size. */
export function paintPicture(canvas, frame, bitmap) {
  canvas.width = bitmap?.width ?? frame.imageWidth;
  canvas.height = bitmap?.height ?? frame.imageHeight;
  if (!bitmap) return;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
}

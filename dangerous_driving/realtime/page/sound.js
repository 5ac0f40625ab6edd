// Two short tones for an alert that rings. Off until somebody switches it on.

const KEY = "dangerous-driving.sound";
let context = null;

export const isOn = () => localStorage.getItem(KEY) === "on";

export function switchTo(on) {
  localStorage.setItem(KEY, on ? "on" : "off");
  if (on) ring("medium"); // so that one hears what it is, and the browser lets it sound from now on
}

/** Ring, if it is on; a high alert is higher and comes twice. */
export function ring(level) {
  if (!isOn()) return;
  context ??= new AudioContext();
  // until somebody has touched the page the browser keeps it silent
  context.resume();
  const pitches = level === "high" ? [880, 660, 880, 660] : [660, 520];
  pitches.forEach((pitch, index) => tone(pitch, context.currentTime + index * 0.16));
}

function tone(pitch, at) {
  const oscillator = context.createOscillator();
  const volume = context.createGain();
  oscillator.frequency.value = pitch;
  volume.gain.setValueAtTime(0, at);
  volume.gain.linearRampToValueAtTime(0.18, at + 0.015);
  volume.gain.exponentialRampToValueAtTime(0.001, at + 0.15);
  oscillator.connect(volume).connect(context.destination);
  oscillator.start(at);
  oscillator.stop(at + 0.16);
}

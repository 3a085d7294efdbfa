// The console: it shows what /admin/overview tells, every other second as long as somebody looks, and lets one try things out. All that
// it does it does over PERE's own HTTP, with the token of whoever sits before it.

import { attempt } from "./attempt.js";
import { devices } from "./devices.js";
import { put } from "./dom.js";
import { now } from "./now.js";
import { Refused, ask, token } from "./server.js";
import { webhooks } from "./webhooks.js";

const EVERY = 2000, LONGEST = 30_000; // ms between two looks, and when nothing answers

const place = (id) => document.getElementById(id);
const pages = { now, try: attempt, devices, webhooks };
const titles = { now: "Now", try: "Try it", devices: "Devices", webhooks: "Webhooks" };
const views = Object.fromEntries(Object.entries(pages).map(([name, page]) => [name, page(place(`view-${name}`))]));
let shown, timer, misses = 0;

// Pages

function go(isFirst = false) {
	const name = location.hash.slice(1) in pages ? location.hash.slice(1) : "now";
	if (name === shown) return;
	views[shown]?.leave();
	shown = name;
	for (const each of Object.keys(pages)) place(`view-${each}`).hidden = each !== name;
	for (const link of document.querySelectorAll("nav a")) {
		if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
		else link.removeAttribute("aria-current");
	}
	document.title = `${titles[name]} · PERE console`;
	views[name].enter?.();
	// Who hears the page instead of seeing it is told where they are now.
	if (!isFirst) { place(`${name}-title`).focus(); scrollTo(0, 0); }
}

// Looking

async function look() {
	clearTimeout(timer);
	if (document.hidden) return pulse("paused", "paused");
	try {
		const told = await ask("GET", "/admin/overview");
		misses = 0;
		put(place("version"), `PERE ${told.version}`);
		warn(told.trouble ? `The store can keep nothing: ${told.trouble}` : "");
		pulse(told.trouble ? "lost" : "live", told.trouble ? "in trouble" : "live");
		for (const view of Object.values(views)) view.show(told);
	} catch (trouble) {
		misses += 1;
		if (!(trouble instanceof Refused)) pulse("lost", "no answer");
		else if (trouble.status === 401) return login(trouble);
		else if (trouble.status === 403) pulse("paused", "no figures");
		else if (trouble.status === 404) pulse("paused", "no figures here");
		else pulse("lost", trouble.code);
		if (trouble.status === 403) return warn("This token does not allow administration: no figures, devices and webhooks. Pushing and listening may work all the same.");
		if (trouble.status === 404) return warn("Administration has a listener of its own (--admin-port): open the console there to see figures, devices and webhooks.");
	}
	timer = setTimeout(look, Math.min(LONGEST, EVERY * 2 ** misses));
}

function pulse(is, words) {
	place("pulse").dataset.is = is;
	put(place("pulse-text"), words);
}

function warn(words) {
	place("notice").hidden = !words;
	put(place("notice"), words);
}

// Who is asking

function login(trouble) {
	if (trouble) pulse("paused", "a token is needed");
	place("login-out").hidden = !token.get();
	put(place("login-hint"), trouble && token.get() ? trouble.message : "Make one with: pere token --admin --push '**' --feed '**'");
	if (!place("login").open) place("login").showModal();
	place("login-token").focus();
}

place("token").addEventListener("click", () => login());
place("login-cancel").addEventListener("click", () => place("login").close());
place("login-form").addEventListener("submit", (event) => {
	token.set(event.submitter?.value === "out" ? "" : place("login-token").value.trim());
	place("login-token").value = "";
	misses = 0;
	warn("");
	views[shown].enter?.();
	look();
});

// Light and dark

const THEMES = ["system", "light", "dark"];

function theme(name) {
	if (name === "system") delete document.documentElement.dataset.theme;
	else document.documentElement.dataset.theme = name;
	put(place("theme"), `Theme: ${name}`);
}

place("theme").addEventListener("click", () => {
	const next = THEMES[(THEMES.indexOf(localStorage.getItem("pere console theme") ?? "system") + 1) % THEMES.length];
	localStorage.setItem("pere console theme", next);
	theme(next);
});

theme(localStorage.getItem("pere console theme") ?? "system");
addEventListener("hashchange", () => go());
document.addEventListener("visibilitychange", look);
go(true);
look();

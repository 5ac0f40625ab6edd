// English and Chinese. What comes from the LLM (descriptions, unknown risk types) stays as it is.

const KEY = "dangerous-driving.language";

const en = {
  skip: "Skip to the alerts", state: "State of the platform", view: "View",
  live: "Live", alerts: "Alerts", cameras: "Cameras", history: "History", system: "System",
  "gauge.cameras": "Cameras", "gauge.alerts": "Live alerts", "gauge.tasks": "Groups waiting", "gauge.keys": "Keys ready", "gauge.lag": "Lag",
  operator: "Operator", "operator.hint": "your name", language: "Language", "sound.on": "Sound on", "sound.off": "Sound off", keys: "Keyboard",
  "connection.connecting": "Connecting", "connection.live": "Live", "connection.reconnecting": "Reconnecting", "connection.refused": "Token needed",
  colours: "Colours of groups", "level.high": "high", "level.medium": "medium", "level.low": "low", "level.none": "none", pending: "not assessed yet",
  "cameras.none": "No cameras yet. Each one appears here with its first frame.",
  "filter.state": "Which alerts", "filter.all": "All alerts", "filter.live": "Live only", "filter.unjudged": "Not judged yet",
  "filter.level": "Lowest level", "filter.any": "Any level", "filter.medium": "Medium and high", "filter.high": "High only",
  "alerts.none": "No alerts. A dangerous scene appears here seconds after it was seen.", older: "Show older alerts",
  "alert.unknown": "There is no such alert. It may be too old to be kept.",
  acknowledge: "Acknowledge", reject: "False alarm", simulated: "Simulated", replay: "Replay", details: "Details", close: "Close",
  "login.title": "Access token", "login.about": "This bridge asks for a token: the one of its settings, or one that an administrator issued to you.",
  "login.token": "Token", "login.connect": "Connect", "login.wrong": "This token is not accepted.", "login.over": "Your token has expired. Ask for a new one.",
  "stage.provisional.geometry": "Provisional · geometry", "stage.provisional.provisional": "Provisional · streamed", "stage.provisional.final": "Provisional",
  "stage.open.geometry": "Open", "stage.open.provisional": "Open · level streamed", "stage.open.final": "Open", "stage.closed": "Closed", "stage.withdrawn": "Withdrawn",
  "basis.geometry": "geometry", "basis.provisional": "streamed level", "basis.final": "final answer", "basis.tick": "silence", "basis.verdict": "verdict",
  "verdict.acknowledged": "Acknowledged", "verdict.rejected": "False alarm", "verdict.by": "{verdict} by {by} at {at}",
  "ago.s": "{n} s", "ago.min": "{n} min", "ago.h": "{n} h", now: "now", "lasted": "{time} long", "one.frame": "one frame", "seen.ago": "seen {time} ago", until: "until {time}", peak: "peak {level}",
  "alert.of": "{level} alert", "alert.announce": "{level} alert, {camera}: {types}", "group.picture": "The group of road users of this alert",
  "type.close": "Road users dangerously close", "type.scene": "Dangerous scene", "type.none": "Dangerous scene, no type given",
  "status.online": "online", "status.degraded": "degraded", "status.offline": "offline", "status.unknown": "unknown", stopped: "stopped by an operator", "camera.id": "camera {id}",
  "camera.stop": "Stop", "camera.start": "Start", "camera.stop.sure": "Stop watching?", "camera.check": "Check",
  "frame.seen": "{users} road users, {groups} groups", "frame.none": "no frame yet", captured: "captured {time}",
  "not.kept": "Not kept: {reason}", "demo": "Demo", "not.live": "Not live", "demo.open": "on this machine, open to everyone who can reach it",
  "cameras.simulated.1": "1 simulated camera, rendered scenes", "cameras.simulated.n": "{n} simulated cameras, rendered scenes",
  "cameras.replay.1": "1 replayed camera, recorded video in a loop", "cameras.replay.n": "{n} replayed cameras, recorded video in a loop", "llm.simulated": "risk levels and descriptions by a simulated LLM",
  "detail.frames": "Frames before, during and after", "detail.before": "before", "detail.during": "alert", "detail.after": "after", "detail.none": "No frame of this alert is kept any more.",
  "detail.steps": "How it came about", "detail.note": "Note", "detail.note.hint": "kept with your verdict", "detail.wait": "Loading…", "detail.delay": "{seconds} s after capture", "detail.gone": "This picture is no longer kept.",
  "step.opened": "opened", "frame.of": "Frame {n} of {all}, {part}, {time}", "previous": "Previous frame", "next": "Next frame",
  "history.span": "Time", "span.1h": "Last hour", "span.24h": "24 hours", "span.7d": "7 days", "span.30d": "30 days", "history.camera": "Camera", "history.all": "All cameras",
  "history.scenes": "Assessed scenes by level", "history.scenes.about": "One scene is one group in one frame; counted by hour, from the tables that dbt builds.",
  "history.alerts": "Alerts by verdict", "history.alerts.about": "By the time they opened. Withdrawn: the final answer saw no danger.",
  "history.cameras": "Cameras by danger", "history.cameras.about": "Dangerous scenes per 1000 road users, so that busy and quiet roads compare.",
  "history.junctions": "Junctions by what is certain", "history.junctions.about": "Alerts per 1000 road users with the 95 % interval, ordered by its lower end: little traffic and one alert do not lead.",
  "history.junctions.days": "The last {days} days, by the last build of the tables.", "table.evidence": "Against all",
  "evidence.more dangerous": "more dangerous", "evidence.less dangerous": "less dangerous", "evidence.no evidence": "no evidence",
  "history.delays": "From capture to alert", "history.delays.about": "Seconds until each stage was decided.",
  "history.nomarts": "dbt has not built its tables yet: scenes appear once it has.", "history.empty": "Nothing in this time.",
  "history.acknowledged": "acknowledged", "history.rejected": "false alarm", "history.unjudged": "not judged", "history.withdrawn": "withdrawn",
  "table.show": "As a table", "table.time": "Time", "table.camera": "Camera", "table.frames": "Frames", "table.users": "Road users", "table.dangerous": "Dangerous scenes", "table.rate": "Per 1000",
  "table.alerts": "Alerts", "table.false": "False alarms", "table.stage": "Stage", "table.count": "Count", "table.median": "Median", "table.p95": "95 %", "total": "Total",
  "system.keys": "Key pool", "system.keys.about": "Requests of the last minute against each key's limit. Keys are shown by their hash.", "system.nokeys": "No key has been used yet.",
  "system.lag": "Messages that wait, by service", "system.nolag": "The broker does not answer.", "system.model": "Model", "system.clients": "Clients of this bridge", "system.tasks": "Groups of the last hour",
  "key.available": "ready", "key.cooling": "cooling", "key.disabled": "disabled", "used": "{used} of {limit} a minute",
  "task.pending": "pending", "task.claimed": "claimed", "task.assessed": "assessed", "task.failed": "failed", "task.expired": "expired",
  "help.title": "Keyboard", "help.move": "Next or previous alert", "help.newest": "The newest alert that nobody has judged", "help.acknowledge": "Acknowledge the selected alert", "help.reject": "The selected alert is a false alarm",
  "help.open": "Details of the selected alert", "help.frames": "Previous or next frame, in the details", "help.help": "This list",
};

const zh = {
  skip: "跳到警报", state: "平台状态", view: "视图",
  live: "实时", alerts: "警报", cameras: "摄像头", history: "历史", system: "系统",
  "gauge.cameras": "摄像头", "gauge.alerts": "当前警报", "gauge.tasks": "等待的目标组", "gauge.keys": "可用密钥", "gauge.lag": "积压",
  operator: "值班员", "operator.hint": "您的姓名", language: "语言", "sound.on": "声音已开", "sound.off": "声音已关", keys: "快捷键",
  "connection.connecting": "连接中", "connection.live": "实时", "connection.reconnecting": "重新连接", "connection.refused": "需要令牌",
  colours: "目标组颜色", "level.high": "高", "level.medium": "中", "level.low": "低", "level.none": "无", pending: "尚未评估",
  "cameras.none": "还没有摄像头。收到第一帧后会显示在这里。",
  "filter.state": "显示哪些警报", "filter.all": "全部警报", "filter.live": "仅当前", "filter.unjudged": "未处理",
  "filter.level": "最低等级", "filter.any": "任何等级", "filter.medium": "中和高", "filter.high": "仅高",
  "alerts.none": "没有警报。危险场景出现几秒后会显示在这里。", older: "显示更早的警报",
  "alert.unknown": "没有此警报，可能已不再保留。",
  acknowledge: "确认", reject: "误报", simulated: "模拟", replay: "回放", details: "详情", close: "关闭",
  "login.title": "访问令牌", "login.about": "此服务需要令牌：设置中的令牌，或管理员签发给您的令牌。",
  "login.token": "令牌", "login.connect": "连接", "login.wrong": "此令牌无效。", "login.over": "您的令牌已过期，请申请新的令牌。",
  "stage.provisional.geometry": "暂定 · 几何", "stage.provisional.provisional": "暂定 · 流式等级", "stage.provisional.final": "暂定",
  "stage.open.geometry": "进行中", "stage.open.provisional": "进行中 · 流式等级", "stage.open.final": "进行中", "stage.closed": "已结束", "stage.withdrawn": "已撤回",
  "basis.geometry": "几何", "basis.provisional": "流式等级", "basis.final": "最终结果", "basis.tick": "静默", "basis.verdict": "人工判断",
  "verdict.acknowledged": "已确认", "verdict.rejected": "误报", "verdict.by": "{verdict}（{by}，{at}）",
  "ago.s": "{n} 秒", "ago.min": "{n} 分钟", "ago.h": "{n} 小时", now: "刚刚", "lasted": "持续 {time}", "one.frame": "一帧", "seen.ago": "{time}前看到", until: "至 {time}", peak: "峰值 {level}",
  "alert.of": "{level}级警报", "alert.announce": "{level}级警报，{camera}：{types}", "group.picture": "此警报中的道路使用者",
  "type.close": "道路使用者距离危险", "type.scene": "危险场景", "type.none": "危险场景，未给出类型",
  "status.online": "在线", "status.degraded": "降级", "status.offline": "离线", "status.unknown": "未知", stopped: "已被值班员停止", "camera.id": "摄像头 {id}",
  "camera.stop": "停止", "camera.start": "启动", "camera.stop.sure": "确定停止？", "camera.check": "检查",
  "frame.seen": "{users} 个道路使用者，{groups} 个目标组", "frame.none": "还没有画面", captured: "拍摄于 {time}",
  "not.kept": "未能保存：{reason}", "demo": "演示", "not.live": "非实况", "demo.open": "在本机运行，任何能访问的人都可使用",
  "cameras.simulated.1": "1 个模拟摄像头，渲染场景", "cameras.simulated.n": "{n} 个模拟摄像头，渲染场景",
  "cameras.replay.1": "1 个回放摄像头，循环播放录像", "cameras.replay.n": "{n} 个回放摄像头，循环播放录像", "llm.simulated": "风险等级和描述由模拟大模型给出",
  "detail.frames": "之前、期间和之后的画面", "detail.before": "之前", "detail.during": "警报", "detail.after": "之后", "detail.none": "此警报的画面已不再保留。",
  "detail.steps": "经过", "detail.note": "备注", "detail.note.hint": "随判断一起保存", "detail.wait": "加载中…", "detail.delay": "拍摄后 {seconds} 秒", "detail.gone": "此图片已不再保留。",
  "step.opened": "出现", "frame.of": "第 {n} / {all} 帧，{part}，{time}", "previous": "上一帧", "next": "下一帧",
  "history.span": "时间", "span.1h": "最近一小时", "span.24h": "24 小时", "span.7d": "7 天", "span.30d": "30 天", "history.camera": "摄像头", "history.all": "全部摄像头",
  "history.scenes": "按等级统计的场景", "history.scenes.about": "一个场景是一帧中的一个目标组；按小时统计，来自 dbt 生成的表。",
  "history.alerts": "按判断统计的警报", "history.alerts.about": "按出现时间。已撤回：最终结果认为没有危险。",
  "history.cameras": "按危险程度排列的摄像头", "history.cameras.about": "每 1000 个道路使用者的危险场景数，便于比较繁忙与安静的道路。",
  "history.junctions": "按确定程度排列的路口", "history.junctions.about": "每 1000 个道路使用者的警报数及 95 % 区间，按区间下限排序：车少而偶有一次警报的路口不会排在最前。",
  "history.junctions.days": "最近 {days} 天，以统计表最近一次生成为准。", "table.evidence": "与全部相比",
  "evidence.more dangerous": "更危险", "evidence.less dangerous": "更安全", "evidence.no evidence": "无证据",
  "history.delays": "从拍摄到警报", "history.delays.about": "到每个阶段作出判断为止的秒数。",
  "history.nomarts": "dbt 尚未生成统计表：生成后这里会显示场景。", "history.empty": "这段时间没有数据。",
  "history.acknowledged": "已确认", "history.rejected": "误报", "history.unjudged": "未处理", "history.withdrawn": "已撤回",
  "table.show": "以表格显示", "table.time": "时间", "table.camera": "摄像头", "table.frames": "帧", "table.users": "道路使用者", "table.dangerous": "危险场景", "table.rate": "每千",
  "table.alerts": "警报", "table.false": "误报", "table.stage": "阶段", "table.count": "数量", "table.median": "中位数", "table.p95": "95 %", "total": "合计",
  "system.keys": "密钥池", "system.keys.about": "最近一分钟的请求数与每个密钥的限额。密钥以哈希显示。", "system.nokeys": "还没有使用过密钥。",
  "system.lag": "各服务等待的消息", "system.nolag": "消息代理没有应答。", "system.model": "模型", "system.clients": "此服务的客户端", "system.tasks": "最近一小时的目标组",
  "key.available": "可用", "key.cooling": "冷却中", "key.disabled": "已停用", "used": "每分钟 {used} / {limit}",
  "task.pending": "等待", "task.claimed": "处理中", "task.assessed": "已评估", "task.failed": "失败", "task.expired": "已过期",
  "help.title": "快捷键", "help.move": "下一个或上一个警报", "help.newest": "最新的未处理警报", "help.acknowledge": "确认所选警报", "help.reject": "所选警报是误报",
  "help.open": "所选警报的详情", "help.frames": "详情中的上一帧或下一帧", "help.help": "此列表",
};

const types = {
  zh: {
    collision: "碰撞", pedestrian_conflict: "人车冲突", wrong_way: "逆行", red_light: "闯红灯", pavement_driving: "占用人行道",
    dangerous_manoeuvre: "危险动作", congestion: "拥堵", queue: "排队", slow_traffic: "缓行", tailgating: "跟车过近",
  },
};

const languages = { en, zh };
let language = localStorage.getItem(KEY) ?? (navigator.language.startsWith("zh") ? "zh" : "en");
if (!(language in languages)) language = "en";

/** The text of a name in the language of the page, with its {places} filled. */
export function t(name, values = {}) {
  const text = languages[language][name] ?? en[name] ?? name;
  return text.replace(/\{(\w+)\}/g, (whole, place) => (place in values ? String(values[place]) : whole));
}

/** A risk type as people read it. */
export function riskType(name) {
  return types[language]?.[name] ?? name.replaceAll("_", " ");
}

export const locale = () => (language === "zh" ? "zh-CN" : undefined);
export const current = () => language;

/** Put the texts into the page: data-t is the text, data-t-label the label, data-t-hint the placeholder. */
export function translate(root = document) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]")) element.setAttribute("aria-label", t(element.dataset.tLabel));
  for (const element of root.querySelectorAll("[data-t-title]")) element.title = t(element.dataset.tTitle);
  for (const element of root.querySelectorAll("[data-t-hint]")) element.placeholder = t(element.dataset.tHint);
}

export function choose(name) {
  language = name in languages ? name : "en";
  localStorage.setItem(KEY, language);
  translate();
}

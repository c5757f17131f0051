// The calculator of Part 3: snippets/architecture/calculator.py, running.py and sizing.py once more, as a page needs
// them. A test compares both on many inputs. The first line is written by
// `python -m snippets.architecture.calculator_files` from quantities.toml.
{
  const QUANTITIES = /* quantities:begin */ {"input": [{"name": "parameters_m", "label": "Parameters", "unit": "millions", "default": 25.6, "above": 0, "most": 10000000, "help": "of the whole model, on however many GPUs", "says": {"number": "Parameters (millions) must be a number.", "low": "Parameters (millions) must be more than 0.", "high": "Parameters (millions) must be at most 10000000.", "whole": "Parameters (millions) must be a whole number."}}, {"name": "parameter_bytes", "label": "A parameter", "unit": "bytes", "default": 2, "above": 0, "most": 16, "help": "4 in float32, 2 in half precision, 0.5 in four bits", "says": {"number": "A parameter (bytes) must be a number.", "low": "A parameter (bytes) must be more than 0.", "high": "A parameter (bytes) must be at most 16.", "whole": "A parameter (bytes) must be a whole number."}}, {"name": "activation_mb", "label": "Activations of an item", "unit": "MB", "default": 5, "above": 0, "most": 1000000, "help": "at their peak: measure two batch sizes and divide the difference", "says": {"number": "Activations of an item (MB) must be a number.", "low": "Activations of an item (MB) must be more than 0.", "high": "Activations of an item (MB) must be at most 1000000.", "whole": "Activations of an item (MB) must be a whole number."}}, {"name": "rate", "label": "Items of an actor in large batches", "unit": "items/s", "default": 2000, "above": 0, "most": 1000000000, "help": "on its GPUs, or on one core where there are none; measure it", "says": {"number": "Items of an actor in large batches (items/s) must be a number.", "low": "Items of an actor in large batches (items/s) must be more than 0.", "high": "Items of an actor in large batches (items/s) must be at most 1000000000.", "whole": "Items of an actor in large batches (items/s) must be a whole number."}}, {"name": "overhead_ms", "label": "Fixed time of a forward pass", "unit": "ms", "default": 3, "least": 0, "most": 1000000, "help": "what a pass takes however small its batch", "says": {"number": "Fixed time of a forward pass (ms) must be a number.", "low": "Fixed time of a forward pass (ms) must be at least 0.", "high": "Fixed time of a forward pass (ms) must be at most 1000000.", "whole": "Fixed time of a forward pass (ms) must be a whole number."}}, {"name": "load_s", "label": "Loading the model", "unit": "s", "default": 2, "least": 0, "most": 1000000, "help": "with the import of its library", "says": {"number": "Loading the model (s) must be a number.", "low": "Loading the model (s) must be at least 0.", "high": "Loading the model (s) must be at most 1000000.", "whole": "Loading the model (s) must be a whole number."}}, {"name": "items", "label": "Number of items", "unit": "images, documents, ...", "default": 10000000, "least": 1, "most": 1000000000000, "whole": true, "help": "each goes through the model once", "says": {"number": "Number of items (images, documents, ...) must be a number.", "low": "Number of items (images, documents, ...) must be at least 1.", "high": "Number of items (images, documents, ...) must be at most 1000000000000.", "whole": "Number of items (images, documents, ...) must be a whole number."}}, {"name": "encoded_kb", "label": "An item as it is stored", "unit": "kB", "default": 110, "above": 0, "most": 1000000000, "help": "a JPEG file, a document", "says": {"number": "An item as it is stored (kB) must be a number.", "low": "An item as it is stored (kB) must be more than 0.", "high": "An item as it is stored (kB) must be at most 1000000000.", "whole": "An item as it is stored (kB) must be a whole number."}}, {"name": "decoded_kb", "label": "An item as it is decoded", "unit": "kB", "default": 150.528, "above": 0, "most": 1000000000, "help": "224 x 224 pixels of three bytes are 150.528 kB", "says": {"number": "An item as it is decoded (kB) must be a number.", "low": "An item as it is decoded (kB) must be more than 0.", "high": "An item as it is decoded (kB) must be at most 1000000000.", "whole": "An item as it is decoded (kB) must be a whole number."}}, {"name": "decode_ms", "label": "Reading and decoding an item", "unit": "ms", "default": 4, "above": 0, "most": 1000000000, "help": "on one CPU while all are busy; measure it", "says": {"number": "Reading and decoding an item (ms) must be a number.", "low": "Reading and decoding an item (ms) must be more than 0.", "high": "Reading and decoding an item (ms) must be at most 1000000000.", "whole": "Reading and decoding an item (ms) must be a whole number."}}, {"name": "cpus", "label": "CPUs", "unit": "a node", "default": 16, "least": 1, "most": 10000, "whole": true, "help": "as Ray counts them: hardware threads", "says": {"number": "CPUs (a node) must be a number.", "low": "CPUs (a node) must be at least 1.", "high": "CPUs (a node) must be at most 10000.", "whole": "CPUs (a node) must be a whole number."}}, {"name": "memory_gib", "label": "Memory", "unit": "GiB", "default": 64, "above": 0, "most": 1000000, "help": "of the node", "says": {"number": "Memory (GiB) must be a number.", "low": "Memory (GiB) must be more than 0.", "high": "Memory (GiB) must be at most 1000000.", "whole": "Memory (GiB) must be a whole number."}}, {"name": "network_gbit", "label": "Network", "unit": "Gbit/s", "default": 25, "above": 0, "most": 100000, "help": "from where the items are stored", "says": {"number": "Network (Gbit/s) must be a number.", "low": "Network (Gbit/s) must be more than 0.", "high": "Network (Gbit/s) must be at most 100000.", "whole": "Network (Gbit/s) must be a whole number."}}, {"name": "gpus", "label": "GPUs", "unit": "a node", "default": 1, "least": 0, "most": 1000, "whole": true, "help": "0: the model runs on the CPUs", "says": {"number": "GPUs (a node) must be a number.", "low": "GPUs (a node) must be at least 0.", "high": "GPUs (a node) must be at most 1000.", "whole": "GPUs (a node) must be a whole number."}}, {"name": "device_gb", "label": "Memory of a GPU", "unit": "GB", "default": 24, "above": 0, "most": 10000, "help": "not used without GPUs", "says": {"number": "Memory of a GPU (GB) must be a number.", "low": "Memory of a GPU (GB) must be more than 0.", "high": "Memory of a GPU (GB) must be at most 10000.", "whole": "Memory of a GPU (GB) must be a whole number."}}, {"name": "gpus_a_model", "label": "Model split over", "unit": "GPUs", "default": 1, "least": 1, "most": 1000, "whole": true, "help": "more than 1: tensor parallelism", "says": {"number": "Model split over (GPUs) must be a number.", "low": "Model split over (GPUs) must be at least 1.", "high": "Model split over (GPUs) must be at most 1000.", "whole": "Model split over (GPUs) must be a whole number."}}, {"name": "workspace_gb", "label": "Workspace of a GPU", "unit": "GB", "default": 1, "least": 0, "most": 10000, "help": "CUDA context, kernels, fragmentation", "says": {"number": "Workspace of a GPU (GB) must be a number.", "low": "Workspace of a GPU (GB) must be at least 0.", "high": "Workspace of a GPU (GB) must be at most 10000.", "whole": "Workspace of a GPU (GB) must be a whole number."}}, {"name": "process_gb", "label": "A worker process", "unit": "GB", "default": 0.5, "above": 0, "most": 10000, "help": "before it holds a model or a block", "says": {"number": "A worker process (GB) must be a number.", "low": "A worker process (GB) must be more than 0.", "high": "A worker process (GB) must be at most 10000.", "whole": "A worker process (GB) must be a whole number."}}, {"name": "deadline_h", "label": "Deadline", "unit": "h", "default": 1, "above": 0, "most": 100000, "help": "from the start of Ray to the last result", "says": {"number": "Deadline (h) must be a number.", "low": "Deadline (h) must be more than 0.", "high": "Deadline (h) must be at most 100000.", "whole": "Deadline (h) must be a whole number."}}, {"name": "start_up_s", "label": "Start-up", "unit": "s", "default": 60, "least": 0, "most": 1000000, "help": "until all actors are at their first batch", "says": {"number": "Start-up (s) must be a number.", "low": "Start-up (s) must be at least 0.", "high": "Start-up (s) must be at most 1000000.", "whole": "Start-up (s) must be a whole number."}}, {"name": "price", "label": "Price of a node", "unit": "an hour", "default": 1, "least": 0, "most": 1000000, "help": "in any currency, as your provider states it", "says": {"number": "Price of a node (an hour) must be a number.", "low": "Price of a node (an hour) must be at least 0.", "high": "Price of a node (an hour) must be at most 1000000.", "whole": "Price of a node (an hour) must be a whole number."}}, {"name": "preemptions", "label": "Preemptions of a node", "unit": "an hour", "default": 0, "least": 0, "most": 1000, "help": "0 on machines that are yours until you give them back", "says": {"number": "Preemptions of a node (an hour) must be a number.", "low": "Preemptions of a node (an hour) must be at least 0.", "high": "Preemptions of a node (an hour) must be at most 1000.", "whole": "Preemptions of a node (an hour) must be a whole number."}}, {"name": "recovery_s", "label": "Recovery from one", "unit": "s", "default": 300, "least": 0, "most": 1000000, "help": "until another node is at its first batch", "says": {"number": "Recovery from one (s) must be a number.", "low": "Recovery from one (s) must be at least 0.", "high": "Recovery from one (s) must be at most 1000000.", "whole": "Recovery from one (s) must be a whole number."}}], "constants": {"store_share": 0.3, "store_most_gb": 200, "data_share": 0.5, "blocks_in_flight": 8, "most_batches": 8, "most_batches_on_cpus": 2, "actor_cpus": 0.5, "overhead": 0.1, "requests_a_prefix": 5500}, "preset": [{"name": "c7i.8xlarge", "title": "AWS c7i.8xlarge, no GPU", "source": "https://aws.amazon.com/ec2/instance-types/c7i/", "values": {"cpus": 32, "memory_gib": 64, "network_gbit": 12.5, "gpus": 0, "device_gb": 1, "gpus_a_model": 1}}, {"name": "g6.xlarge", "title": "AWS g6.xlarge, 1 L4", "source": "https://aws.amazon.com/ec2/instance-types/g6/", "values": {"cpus": 4, "memory_gib": 16, "network_gbit": 10, "gpus": 1, "device_gb": 24, "gpus_a_model": 1}}, {"name": "g6.4xlarge", "title": "AWS g6.4xlarge, 1 L4", "source": "https://aws.amazon.com/ec2/instance-types/g6/", "values": {"cpus": 16, "memory_gib": 64, "network_gbit": 25, "gpus": 1, "device_gb": 24, "gpus_a_model": 1}}, {"name": "g6.8xlarge", "title": "AWS g6.8xlarge, 1 L4", "source": "https://aws.amazon.com/ec2/instance-types/g6/", "values": {"cpus": 32, "memory_gib": 128, "network_gbit": 25, "gpus": 1, "device_gb": 24, "gpus_a_model": 1}}, {"name": "g6.12xlarge", "title": "AWS g6.12xlarge, 4 L4", "source": "https://aws.amazon.com/ec2/instance-types/g6/", "values": {"cpus": 48, "memory_gib": 192, "network_gbit": 40, "gpus": 4, "device_gb": 24, "gpus_a_model": 1}}, {"name": "p4d.24xlarge", "title": "AWS p4d.24xlarge, 8 A100", "source": "https://aws.amazon.com/ec2/instance-types/p4/", "values": {"cpus": 96, "memory_gib": 1152, "network_gbit": 400, "gpus": 8, "device_gb": 40, "gpus_a_model": 1}}, {"name": "p5.48xlarge", "title": "AWS p5.48xlarge, 8 H100", "source": "https://aws.amazon.com/ec2/instance-types/p5/", "values": {"cpus": 192, "memory_gib": 2048, "network_gbit": 3200, "gpus": 8, "device_gb": 80, "gpus_a_model": 1}}], "output": [{"name": "batch_size", "label": "Batch size", "unit": "items", "formula": "the smallest of (n (D − W) − M) / A, the knee, the object store's share of an actor, and the items"}, {"name": "actors_a_node", "label": "Actors a node", "unit": "actors", "formula": "the smallest of GPUs / GPUs a model (or CPUs), memory / memory of an actor, and reading / rate of an actor"}, {"name": "threads", "label": "Threads of an actor", "unit": "threads", "formula": "CPUs / actors, rounded down"}, {"name": "decode_rate", "label": "Reading and decoding, a node", "unit": "items/s", "formula": "CPUs / time of an item"}, {"name": "forward_rate", "label": "Forward passes, a node", "unit": "items/s", "formula": "actors × b / (fixed time + b / rate)"}, {"name": "network_rate", "label": "Network, a node", "unit": "items/s", "formula": "bandwidth / stored item"}, {"name": "node_rate", "label": "Bound of a node", "unit": "items/s", "formula": "the slowest stage; on the same cores 1 / (1/decode + 1/forward)"}, {"name": "useful", "label": "Time that counts", "unit": "of 1", "formula": "t / (M (exp(t/M) − 1)) / (1 + recovery/M), M between preemptions"}, {"name": "nodes", "label": "Nodes", "unit": "machines", "formula": "items / (bound × time that counts × (deadline − start-up − last block)), rounded up"}, {"name": "actors", "label": "Actors, all nodes", "unit": "actors", "formula": "nodes × actors a node"}, {"name": "batches_a_block", "label": "Batches a block", "unit": "batches", "formula": "the smallest of what a task should hold, what the object store holds, and four blocks an actor"}, {"name": "blocks", "label": "Blocks", "unit": "in all", "formula": "items / (batches a block × batch size), rounded up"}, {"name": "store_gb", "label": "Object store for blocks in flight, all nodes", "unit": "GB", "formula": "8 blocks an actor × decoded items"}, {"name": "device_gb_used", "label": "Memory of a GPU in use", "unit": "GB", "formula": "W + (M + b A) / n"}, {"name": "memory_gb_used", "label": "Memory of a node in use", "unit": "GB", "formula": "CPUs × process + actors × (process + weights) + blocks in flight; on CPUs the activations too"}, {"name": "load_factor", "label": "Loading for every batch would take", "unit": "times as long", "formula": "(L + C) / C"}, {"name": "tail_s", "label": "Tail, at most", "unit": "s", "formula": "(1 − 1/actors) × block / rate of an actor"}, {"name": "run_h", "label": "Run time", "unit": "h", "formula": "start-up + items / (nodes × bound × time that counts) + tail"}, {"name": "cost", "label": "Cost", "unit": "in your currency", "formula": "nodes × hours × price"}, {"name": "expected_preemptions", "label": "Preemptions to expect", "unit": "of the run", "formula": "nodes × hours × preemptions of a node"}, {"name": "retried_blocks", "label": "Retries of blocks to expect", "unit": "retries", "formula": "blocks × (exp(t/M) − 1)"}, {"name": "read_gb", "label": "Read from storage", "unit": "GB", "formula": "items × stored item + nodes × actors × weights"}, {"name": "requests", "label": "Requests to storage", "unit": "a second", "formula": "nodes × bound, one a file"}, {"name": "prefixes", "label": "Prefixes of a bucket", "unit": "at least", "formula": "requests / 5500, rounded up"}], "limits": {"memory": "memory", "knee": "the knee of the throughput curve", "store": "the object store", "items": "the items", "gpus": "the GPUs", "cpus": "the CPUs", "reading": "reading and decoding", "decode": "decoding", "forward": "the forward pass", "cores": "the cores, which decode and classify", "network": "the network", "deadline": "the deadline", "task": "what a task should hold", "four": "four blocks for each actor"}, "summary": {"text": "{nodes} nodes, {actors} actors, batches of {batch_size}, {blocks} blocks: {run_h} h, cost {cost}."}, "code": {"text": "# Sized for {items} items: {nodes} nodes, {actors} actors.\npredictions = (\n    ray.data.from_items([{\"id\": path} for path in paths], override_num_blocks={blocks})\n    .map_batches(decode, fn_kwargs={\"filesystem\": filesystem, \"to\": to}, num_cpus={decode_cpus})\n    .map_batches(\n        Classifier,\n        fn_constructor_args=(MODEL, to, {batch_size}, \"auto\", {threads}, {use_gpu}),\n        batch_size={batch_size},\n        compute=ray.data.ActorPoolStrategy(size={pool}),\n        num_cpus={num_cpus},\n        num_gpus={num_gpus},\n        runtime_env={\"env_vars\": KEEP_FREED_MEMORY},\n    )\n)\noptions = predictions.context.execution_options\noptions.resource_limits = options.resource_limits.copy(object_store_memory={store_bytes})\n"}} /* quantities:end */;

  class Refusal extends Error {
    constructor(text, input) {
      super(text);
      this.input = input;
    }
  }

  const accept = (values) => {
    for (const { name, above = -Infinity, least = -Infinity, most, whole, says } of QUANTITIES.input) {
      const value = values[name];
      if (typeof value !== "number" || !Number.isFinite(value)) throw new Refusal(says.number, name);
      if (value < least || value <= above) throw new Refusal(says.low, name);
      if (value > most) throw new Refusal(says.high, name);
      if (whole && value !== Math.floor(value)) throw new Refusal(says.whole, name);
    }
    return values;
  };

  // The smallest of the limits, the first where several are equal, and its name.
  const tightest = (limits) => {
    const [limit, value] = Object.entries(limits).reduce((least, each) => (each[1] < least[1] ? each : least));
    return { limit, value };
  };

  const batchThatFits = (weights, activations, device, workspace, devices) => {
    if (workspace >= device) {
      throw new Refusal("The workspace alone fills the device: no number of devices holds the model.");
    }
    const needed = Math.ceil((weights + activations) / (device - workspace));
    if (needed > devices) {
      throw new Refusal(
        `The model does not fit: with one item it takes ${needed} such devices, and there are ${devices}.`,
      );
    }
    return Math.max(1, Math.floor((devices * (device - workspace) - weights) / activations));
  };

  // A Ray Data actor without a GPU reserves a part of a CPU, and a task must always find one.
  const actorsByCpus = (cpus, actorCpus) => {
    const task = cpus >= 1 + actorCpus ? 1 : cpus - actorCpus;
    return Math.max(0, Math.min(Math.trunc((cpus - task) / actorCpus), cpus));
  };

  const write = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

  const plan = (values) => {
    const of = accept(values), constants = QUANTITIES.constants;
    const { cpus, gpus, items } = of;
    const devices = gpus ? of.gpus_a_model : 1;
    const weights = of.parameters_m * 1e6 * of.parameter_bytes;
    const activations = of.activation_mb * 1e6, process = of.process_gb * 1e9;
    const encoded = of.encoded_kb * 1e3, decoded = of.decoded_kb * 1e3;
    const memory = of.memory_gib * 2 ** 30;
    const fixed = of.overhead_ms / 1e3, item = 1 / of.rate, decode = of.decode_ms / 1e3;
    const device = of.device_gb * 1e9, workspace = of.workspace_gb * 1e9;
    let fits;

    // The pool, as far as hardware decides it.
    if (gpus && gpus < devices) throw new Refusal("A node has fewer GPUs than a model is split over.");
    if (gpus) fits = batchThatFits(weights, activations, device, workspace, devices);
    const pool = gpus ? { gpus: Math.trunc(gpus / devices) } : { cpus: actorsByCpus(cpus, constants.actor_cpus) };
    const store = Math.min(memory * constants.store_share, constants.store_most_gb * 1e9);
    const reserved = store + cpus * process;
    pool.memory = Math.max(0, Math.floor((memory - reserved) / (process + weights + (gpus ? 0 : activations))));
    const mostActors = tightest(pool).value;
    if (mostActors < 1) {
      throw new Refusal(
        "The memory of a node holds no actor beside the object store and the workers that decode.",
      );
    }

    // The batch.
    if (!gpus) fits = batchThatFits(weights, activations, (memory - reserved) / mostActors, process, 1);
    const forBlocks = store * constants.data_share, inFlight = constants.blocks_in_flight;
    const inStore = Math.floor(forBlocks / (inFlight * mostActors * decoded));
    if (inStore < 1) {
      throw new Refusal("The object store of a node holds no block of one item for each place in flight.");
    }
    const batch = tightest({
      memory: fits,
      knee: Math.max(1, Math.ceil(((1 - constants.overhead) / constants.overhead) * fixed / item)),
      store: inStore,
      items,
    });
    const batchSize = batch.value;

    // The rates of a node.
    let actorRate = batchSize / (fixed + item * batchSize);
    const decodeRate = cpus / decode;
    const networkRate = of.network_gbit * 1e9 / 8 / encoded;
    if (gpus) pool.reading = Math.ceil(Math.min(decodeRate, networkRate) / actorRate);
    const actors = tightest(pool);
    const threads = Math.max(1, Math.floor(cpus / actors.value));
    if (!gpus) actorRate *= threads;
    const forwardRate = actors.value * actorRate;
    const node = tightest(
      gpus
        ? { decode: decodeRate, forward: forwardRate, network: networkRate }
        : { cores: 1 / (1 / decodeRate + 1 / forwardRate), network: networkRate },
    );

    // The cluster.
    const batches = { task: gpus ? constants.most_batches : constants.most_batches_on_cpus };
    batches.store = Math.floor(forBlocks / (inFlight * actors.value * batchSize * decoded));
    const most = Math.max(1, Math.min(batches.task, batches.store));
    const longest = most * batchSize / actorRate;
    const aSecond = of.preemptions / 3600, lost = aSecond * longest;
    if (lost >= 1) throw new Refusal("A block takes longer than a node lives on average: make blocks smaller.");
    const useful = (lost ? lost / Math.expm1(lost) : 1) / (1 + aSecond * of.recovery_s);
    const deadline = of.deadline_h * 3600;
    if (deadline <= of.start_up_s + longest) {
      throw new Refusal("The deadline passes during start-up and the last block: no number of nodes meets it.");
    }
    const nodes = Math.ceil(items / (node.value * useful * (deadline - of.start_up_s - longest)));
    const allActors = nodes * actors.value;
    batches.four = Math.min(most, Math.max(1, Math.floor(items / (4 * allActors * batchSize))));
    const inBlock = tightest(batches);
    const rows = inBlock.value * batchSize;
    const blocks = Math.ceil(items / rows);
    const stored = inFlight * allActors * rows * decoded;

    // The run.
    const tail = (1 - 1 / allActors) * (rows / actorRate);
    const rate = nodes * node.value * useful;
    const seconds = of.start_up_s + items / rate + tail;
    const hours = seconds / 3600;
    const onCpus = gpus ? 0 : batchSize * activations;
    const compute = batchSize / actorRate;
    const answers = {
      batch_size: batchSize,
      actors_a_node: actors.value,
      threads,
      decode_rate: decodeRate,
      forward_rate: forwardRate,
      network_rate: networkRate,
      node_rate: node.value,
      useful,
      nodes,
      actors: allActors,
      batches_a_block: inBlock.value,
      blocks,
      store_gb: stored / 1e9,
      device_gb_used: gpus ? (workspace + (weights + batchSize * activations) / devices) / 1e9 : 0,
      memory_gb_used: (cpus * process + actors.value * (process + weights + onCpus) + stored / nodes) / 1e9,
      load_factor: (of.load_s + compute) / compute,
      tail_s: tail,
      run_h: hours,
      cost: nodes * hours * of.price,
      expected_preemptions: nodes * hours * of.preemptions,
      retried_blocks: blocks * Math.expm1(aSecond * (rows / actorRate)),
      read_gb: (items * encoded + allActors * weights) / 1e9,
      requests: rate,
      prefixes: Math.ceil(rate / constants.requests_a_prefix),
    };
    const limits = {
      batch_size: batch.limit,
      actors_a_node: actors.limit,
      node_rate: node.limit,
      nodes: "deadline",
      batches_a_block: inBlock.limit,
    };
    const code = write(QUANTITIES.code.text, {
      ...answers,
      items,
      pool: Math.min(allActors, blocks),
      decode_cpus: gpus || cpus >= 1 + constants.actor_cpus ? 1 : cpus - constants.actor_cpus,
      num_cpus: gpus ? 0 : constants.actor_cpus,
      num_gpus: gpus ? devices : 0,
      use_gpu: gpus ? "True" : "False",
      store_bytes: Math.ceil(stored),
    });
    return { answers, limits, code: `${code.trim()}\n` };
  };

  const show = (value) => value.toLocaleString("en-US", Number.isInteger(value) ? {} : { maximumSignificantDigits: 4 });

  // What a person typed is a number, or stays text, which is refused.
  const read = (text) => (/^\s*$/.test(text) ? text : Number(text.replace(/(?<=\d),(?=\d{3})/g, "")));

  const form = document.querySelector("form.calculator");
  if (form) {
    form.plan = plan; // for the test that compares it with the Python
    form.show = show;
    const fields = QUANTITIES.input.map(({ name }) => form.elements[name]);
    const preset = form.querySelector("select"), says = form.querySelector("[role=status]");
    const code = document.querySelector(".sized"), answers = document.querySelector(".answers");

    const matching = () =>
      QUANTITIES.preset.find(({ values }) =>
        Object.entries(values).every(([name, value]) => read(form.elements[name].value) === value),
      );

    // The part of the address behind # has what differs from the defaults. No browser sends that part to a host.
    const keep = () => {
      const differing = new URLSearchParams();
      for (const [index, { name, default: usual }] of QUANTITIES.input.entries()) {
        if (fields[index].value !== String(usual)) differing.set(name, fields[index].value);
      }
      history.replaceState(null, "", `${location.pathname}${location.search}${differing.size ? `#${differing}` : ""}`);
    };

    const answer = () => {
      preset.value = matching()?.name ?? "";
      for (const field of fields) field.removeAttribute("aria-invalid");
      let result;
      try {
        result = plan(Object.fromEntries(fields.map((field) => [field.name, read(field.value)])));
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        form.elements[error.input]?.setAttribute("aria-invalid", "true");
        says.textContent = error.message;
        answers.classList.add("refused");
        code.textContent = "";
        return;
      }
      answers.classList.remove("refused");
      for (const { name, unit } of QUANTITIES.output) {
        const [value, limit] = answers.querySelectorAll(`[data-answer=${name}] > td`);
        value.textContent = `${show(result.answers[name])} ${unit}`;
        limit.textContent = QUANTITIES.limits[result.limits[name]] ?? "";
      }
      code.textContent = result.code;
      const shown = Object.fromEntries(Object.entries(result.answers).map(([name, value]) => [name, show(value)]));
      says.textContent = write(QUANTITIES.summary.text, shown);
    };

    const restore = () => {
      const given = new URLSearchParams(location.hash.slice(1));
      for (const [index, { name, default: usual }] of QUANTITIES.input.entries()) {
        fields[index].value = given.get(name) ?? usual;
      }
      answer();
    };

    const copy = (button, text) =>
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(text());
        says.textContent = "Copied.";
      });

    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      if (event.target === preset) {
        const { values = {} } = QUANTITIES.preset.find(({ name }) => name === preset.value) ?? {};
        for (const [name, value] of Object.entries(values)) form.elements[name].value = value;
      }
      keep();
      answer();
    });
    addEventListener("hashchange", restore); // a link pasted into the address of this very page
    copy(form.querySelector("button.link"), () => location.href);
    const button = document.querySelector("button.copy-code");
    copy(button, () => code.textContent);
    form.hidden = button.hidden = false;
    restore();
  }
}

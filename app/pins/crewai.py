"""CrewAI's internals: `app.engine` replaces, calls or repeats them."""

from app.pins.pin import Pin

PINS: tuple[Pin, ...] = (
    # Replaced, once per process (engine/patches.py)
    Pin(
        "crewai.project.utils:memoize",
        "cd2ae9ec67cb",
        "keeps all crews of @CrewBase classes, under the `id` of their instances",
    ),
    Pin(
        "crewai.project.utils:_make_hashable",
        "e970b5f0ff8a",
        "the same; is called by the replacement",
    ),
    Pin(
        "crewai.utilities.llm_utils:_llm_via_environment_or_fallback",
        "86fee0e217a2",
        "agents without a model get the deployment's, not an OpenAI client",
    ),
    Pin(
        "crewai.project.crew_base:load_yaml",
        "0310be8f228f",
        "parses the configuration files of @CrewBase classes for each run",
    ),
    Pin(
        "crewai.crews.utils:setup_agents",
        "6afe6d15a410",
        "creates executors that each agent's first task changes completely",
    ),
    Pin(
        "crewai.agent.core:Agent._update_executor_parameters",
        "45a6d20c64a9",
        "the same: the change",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor._show_start_logs",
        "c3015503fa78",
        "builds an event that only `emit` reads",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor._show_logs",
        "1cf1bba400c1",
        "the same",
    ),
    Pin(
        "crewai.agent.core:Agent._finalize_task_execution",
        "3978b4361d94",
        "the same",
    ),
    Pin(
        "fields crewai.agents.agent_executor:AgentExecutor",
        "6cf022fe7630",
        "native executors are created without validation",
    ),
    Pin(
        "crewai.flow.flow_wrappers:FlowMethod.unwrap",
        "50cb04d0f473",
        "returns the method of a flow's step",
    ),
    Pin(
        "crewai.utilities.env:get_env_context",
        "c33103dc819b",
        "looks for coding assistants in each context, to report them once",
    ),
    Pin(
        "crewai.llms.base_llm:BaseLLM._track_token_usage_internal",
        "ae98d9121dc2",
        "counts a run's tokens once, where the models report them",
    ),
    Pin(
        "crewai.tools.base_tool:BaseTool.run",
        "73de4e02467e",
        "executes a tool that a function call requests",
    ),
    Pin(
        "crewai.tools.base_tool:BaseTool.arun",
        "133a8d4d9034",
        "the same on an event loop",
    ),
    Pin(
        "crewai.tools.base_tool:Tool.run",
        "7af7be9ae061",
        "the same for a tool that is a function",
    ),
    Pin(
        "crewai.tools.base_tool:Tool.arun",
        "6bef613314c5",
        "the same on an event loop",
    ),
    Pin(
        "crewai.tools.structured_tool:CrewStructuredTool.invoke",
        "b110405ad910",
        "executes a tool that an action in text requests",
    ),
    Pin(
        "crewai.tools.structured_tool:CrewStructuredTool.ainvoke",
        "ad868e3a76db",
        "the same on an event loop",
    ),
    Pin(
        "crewai.task:Task._execute_core",
        "8d5a5800e3e0",
        "reports a stock task's start and end, and clears its output_file",
    ),
    Pin(
        "crewai.task:Task._aexecute_core",
        "f2c41e73aada",
        "the same for native tasks, which also end together if one fails",
    ),
    Pin(
        "crewai.task:Task._ainvoke_guardrail_function",
        "0b38a9f6087e",
        "guardrails block: they run in a thread",
    ),
    Pin(
        "crewai.task:Task._invoke_guardrail_function",
        "17862b9a0967",
        "runs in that thread",
    ),
    Pin(
        "crewai.task:Task._aexport_output",
        "995de937c06a",
        "awaits a converter's asynchronous methods; a converter of a task runs in a thread",
    ),
    Pin(
        "crewai.task:Task._export_output",
        "c1d9d9cc4737",
        "runs in that thread",
    ),
    Pin(
        "crewai.llms.base_llm:BaseLLM.acall",
        "08dc1e254584",
        "raises NotImplementedError: such a model is called in a thread",
    ),
    Pin(
        "crewai.utilities.guardrail:process_guardrail",
        "2e1663f6816a",
        "reports each round of a guardrail",
    ),
    Pin(
        "crewai.utilities.rpm_controller:RPMController",
        "7f013c72cf35",
        "counts requests with a timer thread, and blocks: ours waits on the event loop",
    ),
    Pin(
        "crewai.utilities.agent_utils:enforce_rpm_limit",
        "142061297554",
        "called by steps before their model call; ours waits instead",
    ),
    Pin(
        "crewai.crew:Crew._handle_crew_planning",
        "1d3d50b54b05",
        "calls the planner on the event loop: ours does it in a thread",
    ),
    Pin(
        "crewai.utilities.planning_handler:CrewPlanner._create_planning_agent",
        "c215b47f0373",
        "the planner gets our executor as well",
    ),
    Pin(
        "crewai.crew:Crew._get_agent_to_use",
        "e5487795569e",
        "tasks that one agent would execute at the same time get copies of it",
    ),
    Pin(
        "crewai.skills.loader:load_skills",
        "10814287226e",
        "reads a crew's skills in each run: ours once",
    ),
    Pin(
        "crewai.agent.core:Agent.get_mcp_tools",
        "fd60526f5181",
        "connects to MCP servers before a task: ours does it in a thread",
    ),
    Pin(
        "crewai.agent.core:Agent.get_platform_tools",
        "615c2df29f33",
        "fetches the tools of apps before a task: likewise",
    ),
    Pin(
        "crewai.crew:Crew._prepare_tools",
        "6b8472dde1ff",
        "calls both on the event loop",
    ),
    Pin(
        "crewai.tools.mcp_native_tool:MCPNativeTool._run_async",
        "f4e427e8a88d",
        "connects for each call: its client uses a connection that runs share",
    ),
    Pin(
        "crewai.mcp.tool_resolver:MCPToolResolver._resolve_native",
        "a43ab15fd823",
        "likewise, before each task",
    ),
    Pin(
        "crewai.mcp.client:MCPClient.connect",
        "87da7d16ed0f",
        "opens the transport and a session: ours in a task of its own",
    ),
    Pin(
        "crewai.mcp.client:MCPClient._list_tools_impl",
        "abe40281fb72",
        "uses the session: ours on the engine's event loop",
    ),
    Pin(
        "crewai.mcp.client:MCPClient._call_tool_impl",
        "15e75dcaec19",
        "likewise",
    ),
    Pin(
        "crewai.mcp.transports.http:HTTPTransport.connect",
        "54b82c1e7ca4",
        "opens the transport in another task before Python 3.12, and so can't close it",
    ),
    Pin(
        "crewai.mcp.transports.http:HTTPTransport._close_transport_context",
        "4f8a3bf7eec1",
        "closes what our `connect` has opened",
    ),
    Pin(
        "crewai.crew:Crew._create_manager_agent",
        "df6fd685f6dd",
        "the manager agent that CrewAI creates gets our executor as well",
    ),
    Pin(
        "crewai.utilities.agent_utils:get_llm_response",
        "ef3f3439d578",
        "a native executor's steps get their answer from the event loop",
    ),
    Pin(
        "crewai.utilities.agent_utils:handle_context_length",
        "7b16e0f6b226",
        "raises SystemExit, which would block or stop a worker",
    ),
    Pin(
        "crewai.events.event_bus:CrewAIEventsBus.emit",
        "ad75d37498c3",
        "native runs without listeners dispatch no events",
    ),
    Pin(
        "crewai.utilities.file_store:_run_sync",
        "39f874a325a1",
        "a thread and an event loop per file lookup, even without files",
    ),
    Pin(
        "crewai.utilities.file_store:astore_task_files",
        "97ab793abed1",
        "our store of input files has the methods that it calls",
    ),
    Pin(
        "crewai.llms.base_llm:BaseLLM._process_message_files",
        "00b9b2b43c0f",
        "reads and encodes files on the event loop; ours calls it in a thread before",
    ),
    Pin(
        "crewai.utilities.task_output_storage_handler:TaskOutputStorageHandler",
        "442885171798",
        "a locked SQLite file per machine, which only crew.replay reads",
    ),
    Pin(
        "crewai.task:Task._get_output_format",
        "4f8a0f02ac42",
        "called for the output of a task that is replayed",
    ),
    Pin(
        "crewai.core.providers.human_input:SyncHumanInputProvider._handle_regular_feedback",
        "aa073cd09fd0",
        "repeats until a human has no more feedback; ours pauses the run in between",
    ),
    # A crew's own folder (compat/paths.py), and its silence (compat/silence.py)
    Pin(
        "crewai.knowledge.source.base_file_knowledge_source:BaseFileKnowledgeSource.convert_to_path",
        "4ae74b549e4d",
        "prepends KNOWLEDGE_DIRECTORY to a file name: ours is the crew's folder",
    ),
    Pin(
        "crewai.knowledge.source.excel_knowledge_source:ExcelKnowledgeSource.convert_to_path",
        "4ae74b549e4d",
        "the same",
    ),
    Pin(
        "crewai.skills.loader:discover_skills",
        "f085d2df9526",
        "finds skills in the working directory: ours in the crew's folder",
    ),
    Pin(
        "crewai.crew:Crew.set_private_attrs",
        "b39230ab3210",
        "makes the process's console as verbose as the crew that was built last",
    ),
    Pin(
        "crewai.agents.agent_builder.base_agent:BaseAgent.set_private_attrs",
        "ba6a83ed4d8a",
        "makes an agent's logger as verbose as the agent",
    ),
    Pin(
        "crewai.events.utils.console_formatter:ConsoleFormatter.print_panel",
        "5c87a7714785",
        "prints an event if `verbose`, which is always False in ours",
    ),
    Pin(
        "crewai_core.printer:should_suppress_console_output",
        "5cbeaa3ace72",
        "a context variable that silences printers: set within a run",
    ),
    Pin(
        "crewai.llms.base_llm:BaseLLM.get_input_tokens_count",
        "1006ff534518",
        "warns in each run that it estimates tokens: ours lets one line pass",
    ),
    Pin(
        "crewai.events.event_context:EventContextConfig",
        "16a6034f8aae",
        "its defaults print a line for each event without a start: ours are silent",
    ),
    # Tracing (compat/tracing.py)
    Pin(
        "crewai.execution:_tracing_disabled",
        "ddb0c6de0e36",
        "decides whether a kickoff collects traces: ours never does",
    ),
    Pin(
        "crewai.execution:begin_execution",
        "4c2024936912",
        "starts tracing unless that function forbids it",
    ),
    Pin(
        "crewai.events.listeners.tracing.utils:should_enable_tracing",
        "2f1be62b3689",
        "marks a crew's or flow's context as traced",
    ),
    # The environment (compat/environment.py)
    Pin(
        "crewai_core.settings:get_writable_config_path",
        "8ef91acafeca",
        "would write to the home directory while CrewAI is imported",
    ),
    Pin(
        "crewai_core.token_manager:TokenManager._get_secure_storage_path",
        "8f52a6cb328c",
        "the same",
    ),
    Pin(
        "crewai.events.listeners.tracing.utils:_is_test_environment",
        "63a9f25a6b74",
        "stops CrewAI from prompting on the terminal",
    ),
    # The native executor (native/) calls these in the order of CrewAI's flow
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.generate_plan",
        "24f5aa2dc072",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.check_todos_available",
        "63b93c964255",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.get_ready_todos_method",
        "83b9587819eb",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.execute_todo_sequential",
        "7e19a84ffebf",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.execute_todos_parallel",
        "f94444ad4e85",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.after_parallel_execution",
        "3cfb43723d7c",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.handle_replan",
        "3a56d3ba4ce0",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.observe_step_result",
        "6c26cc3d605e",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.handle_step_observed_low",
        "8b3b32b1cfb0",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.handle_step_observed_medium",
        "bccd6ffed16b",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.decide_next_action",
        "01f053534d1a",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.handle_refine_and_continue",
        "95f2f1fd40ff",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.handle_continue_plan",
        "68da1b03fcc9",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.handle_goal_achieved",
        "53616af6e201",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.handle_replan_now",
        "b76a22214468",
        "a step of an agent with a plan",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.initialize_reasoning",
        "e98dbae501a0",
        "a step of the executor's flow",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.check_max_iterations",
        "5f1a7ab8abd1",
        "a step of the executor's flow",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.call_llm_and_parse",
        "f8763cee8674",
        "a step of the executor's flow",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.call_llm_native_tools",
        "96e2e9ae1291",
        "a step of the executor's flow",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.route_by_answer_type",
        "f29ff341d6f2",
        "a step of the executor's flow",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.execute_tool_action",
        "bb57028868fa",
        "a step of the executor's flow",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.execute_native_tool",
        "732ccf6402b9",
        "a step of the executor's flow",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.check_todo_completion",
        "fc500218a5df",
        "a step of the executor's flow",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.increment_and_continue",
        "700ed98fdff9",
        "a step of the executor's flow",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.recover_from_parser_error",
        "628cfbedac28",
        "a step of the executor's flow",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.recover_from_context_length",
        "a6852c589f51",
        "a step of the executor's flow",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.ensure_force_final_answer",
        "19ea5ab33754",
        "a step of the executor's flow",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.finalize",
        "2596a74a2c4e",
        "a step of the executor's flow",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.invoke",
        "34a94f04edc8",
        "prepares messages, then calls kickoff",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor.invoke_async",
        "26d0578156cb",
        "prepares messages, then awaits kickoff_async",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor._setup_executor",
        "dadc903ebe89",
        "sets the state before the flow is set up",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor._setup_messages",
        "1e1aa3a0e69a",
        "the reviews follow the messages that it makes",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor._append_message_to_state",
        "4f3b196afee5",
        "the earlier output that a human did not approve of",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor._format_feedback_message",
        "1ab9fb2a7aea",
        "the human's feedback on it",
    ),
    Pin(
        "crewai.flow.runtime:Flow._flow_post_init",
        "ec76f5fb7bcb",
        "defines a pydantic class per executor; left out",
    ),
    Pin(
        "crewai.utilities.agent_utils:aget_llm_response",
        "f72a94bcfd08",
        "ours does the same without counting tokens in vain",
    ),
    Pin(
        "crewai.utilities.agent_utils:_prepare_llm_call",
        "520f74c33699",
        "called by ours",
    ),
    Pin(
        "crewai.utilities.agent_utils:_proactively_summarize_context",
        "1939f5eac600",
        "called by ours",
    ),
    Pin(
        "crewai.utilities.agent_utils:_summarize_context_before_llm_call",
        "47370884169e",
        "its rule for a first request",
    ),
    Pin(
        "crewai.utilities.agent_utils:_validate_and_finalize_llm_response",
        "0aa55839ea90",
        "called by ours; its error message identifies an empty answer",
    ),
    Pin(
        "crewai.crew:Crew.akickoff",
        "f3fc0ce080ee",
        "entry point of the execution mode native",
    ),
    Pin(
        "crewai.crew:Crew._aexecute_tasks",
        "bda2ce117a9d",
        "starts asynchronous tasks that we end",
    ),
    Pin(
        "crewai.crew:Crew.kickoff",
        "3d02be51c261",
        "entry point of the execution mode stock",
    ),
    Pin(
        "crewai.crews.utils:prepare_kickoff",
        "6819d92dc643",
        "order of callbacks, inputs and agents",
    ),
    # The recorded plan (replay/, compat/coverage.py) repeats these
    Pin(
        "crewai.crew:Crew._execute_tasks",
        "348b50d49b3a",
        "order of tasks",
    ),
    Pin(
        "crewai.crew:Crew._get_context",
        "9497b1cdef4c",
        "which outputs are a task's context",
    ),
    Pin(
        "crewai.utilities.formatter:aggregate_raw_outputs_from_task_outputs",
        "03e4e934aefe",
        "joins a task's context by DIVIDERS: feedback is added likewise",
    ),
    Pin(
        "crewai.crew:Crew._create_crew_output",
        "07748a9f501f",
        "which output is the result",
    ),
    Pin(
        "crewai.task:Task.interpolate_inputs_and_add_conversation_history",
        "865e9cd24736",
        "inputs that CrewAI reads itself",
    ),
    Pin(
        "crewai.utilities.string_utils:interpolate_only",
        "c252e41b8305",
        "types of inputs, placeholders inside values",
    ),
    Pin(
        "crewai.utilities.prompts:Prompts._build_prompt",
        "5c24e9a3c49a",
        "placeholders that CrewAI replaces one after the other",
    ),
    Pin(
        "crewai.agents.agent_executor:AgentExecutor._format_prompt",
        "2e1615d00e74",
        "the same",
    ),
    Pin(
        "crewai.utilities.message_utils:format_message_for_llm",
        "5787fda2eb71",
        "strips messages at their end",
    ),
    Pin(
        "crewai.utilities.agent_utils:_llm_stop_words_applied",
        "6c8359c353e0",
        "called by the plan",
    ),
    Pin(
        "crewai.utilities.agent_utils:process_llm_response",
        "f6038f83ffac",
        "called by the plan",
    ),
    Pin(
        "crewai.agent.core:Agent.aexecute_task",
        "4e37f8e017cd",
        "retries of an agent",
    ),
    Pin(
        "crewai.agent.core:Agent._check_execution_error",
        "e0db6b0638ca",
        "retries of an agent",
    ),
    Pin(
        "crewai.agent.core:Agent.create_agent_executor",
        "4542f3495d90",
        "parameters of model calls",
    ),
    Pin(
        "crewai.agent.core:Agent._use_trained_data",
        "e97d37073560",
        "location of trained agents' data",
    ),
    Pin(
        "crewai.tasks.task_output:TaskOutput",
        "61118523751d",
        "made by the plan",
    ),
    Pin(
        "crewai.crews.crew_output:CrewOutput",
        "71f89309b27c",
        "made by the plan",
    ),
    Pin(
        "crewai.hooks.dispatch:_resolve_hooks",
        "1388d23bd1fe",
        "hooks that a plan can't honour",
    ),
    Pin(
        "crewai.core.providers.content_processor:get_processor",
        "6631cc6e72f7",
        "content processors that a plan can't honour",
    ),
    Pin(
        "crewai.events.event_bus:CrewAIEventsBus._register_handler",
        "7e446f885d04",
        "listeners that a plan can't honour",
    ),
    Pin(
        "crewai.project.crew_base:close_mcp_server",
        "0e579cf93909",
        "the callback that every crew of a @CrewBase class has",
    ),
    Pin(
        "fields crewai.crew:Crew",
        "320f25601024",
        "the fields with their defaults",
    ),
    Pin(
        "fields crewai.agent.core:Agent",
        "d2a5169ce7e9",
        "the same",
    ),
    Pin(
        "fields crewai.task:Task",
        "3fb5c4d6daef",
        "the same",
    ),
    Pin(
        "fields crewai.tasks.conditional_task:ConditionalTask",
        "2c3ebd05843a",
        "the same",
    ),
    # Flows and the crews inside of them (flows/)
    Pin(
        "crewai.crew:Crew.kickoff_async",
        "27d692a8c1c3",
        "the same; it would hold a thread",
    ),
    Pin(
        "crewai.crew:Crew.copy",
        "703598e5d38e",
        "a crew that runs elsewhere is copied",
    ),
    Pin(
        "crewai.types.streaming:CrewStreamingOutput._set_result",
        "f160cd0db406",
        "a crew that streams inside a flow gives its result without chunks",
    ),
    Pin(
        "crewai.flow.runtime:Flow.kickoff",
        "4af4b4a8c4f2",
        "does no more than kickoff_async in an event loop of its own",
    ),
    Pin(
        "crewai.flow.runtime:Flow.kickoff_async",
        "a7405cac2996",
        "the run of a flow; what it returns is the result",
    ),
    Pin(
        "crewai.flow.runtime:Flow._execute_method",
        "5ae859bc2824",
        "sync methods go to the default executor of the flow's own event loop",
    ),
    Pin(
        "crewai.flow.runtime:Flow._initialize_state",
        "465ddf7c1204",
        "how inputs enter the state: they are checked likewise",
    ),
    Pin(
        "crewai.flow.runtime:Flow._copy_state",
        "ea4b18b346ca",
        "a run's state shares nothing with the class",
    ),
    Pin(
        "crewai.flow.runtime:Flow.ask",
        "8db4f8162cb8",
        "accepts None as no answer",
    ),
    Pin(
        "crewai.flow.runtime:Flow._resolve_feedback_provider",
        "325a3a348c73",
        "the provider of human feedback",
    ),
    Pin(
        "crewai.flow.runtime:Flow._attach_usage_aggregation_listener",
        "404e389bdc14",
        "a listener per flow for the calls of all flows",
    ),
    Pin(
        "crewai.flow.runtime:Flow._detach_usage_aggregation_listener",
        "ef83ffa5aa3e",
        "the same",
    ),
    Pin(
        "crewai.flow.persistence.factory:default_flow_persistence",
        "2a9b72484589",
        "where @persist stores states: in the run",
    ),
    Pin(
        "crewai.memory.storage.factory:resolve_memory_storage",
        "695eebb6df22",
        "where memories are stored: with the run",
    ),
    # Around the pooled model clients (llm/)
    Pin(
        "crewai.llms.retry:run_with_rate_limit_retry",
        "27b05d1932ee",
        "CrewAI's own retries of rate limits are switched off: the pool retries",
    ),
    Pin(
        "crewai.llms.retry:arun_with_rate_limit_retry",
        "d762b9aa2a66",
        "the same, of asynchronous calls",
    ),
    Pin(
        "crewai.llms.base_llm:BaseLLM._wrap_call_method",
        "ed47b60ccc00",
        "CrewAI's wrapper of every model call stays in effect",
    ),
    Pin(
        "crewai.llms.base_llm:BaseLLM._effective_max_tokens",
        "9f9acd9c099d",
        "budgets reserve the cost of the longest answer",
    ),
    Pin(
        "crewai.llms.base_llm:BaseLLM._effective_stream",
        "4ee7020eee34",
        "a run with subscribers streams without changing the shared model",
    ),
    Pin(
        "crewai.llms.providers.openai.completion:OpenAICompletion._init_clients",
        "fa1c98ee0850",
        "creates HTTP clients: ours send over the pool",
    ),
    Pin(
        "crewai.llms.providers.openai.completion:OpenAICompletion._build_sync_client",
        "3376f7053b85",
        "the same",
    ),
    Pin(
        "crewai.llms.providers.openai.completion:OpenAICompletion._build_async_client",
        "f7b4af1cadd8",
        "the same",
    ),
    Pin(
        "crewai.llms.providers.openai.completion:OpenAICompletion._get_async_client",
        "5c926102a3fb",
        "the same",
    ),
    Pin(
        "crewai.llms.providers.openai.completion:OpenAICompletion._get_client_params",
        "462c91912ce6",
        "address, key and time limit of a model's client",
    ),
    Pin(
        "crewai.llms.providers.openai.completion:OpenAICompletion._ahandle_completion",
        "e971ddeedd26",
        "reads the answer that the pooled client gives; ours reads one that is text",
    ),
    Pin(
        "crewai.llms.providers.openai.completion:OpenAICompletion._extract_openai_token_usage",
        "c624c4bfa656",
        "reads the usage of an answer by its attributes, also that of our smaller model",
    ),
    Pin(
        "crewai.llms.base_llm:BaseLLM._apply_stop_words",
        "8a07341c39cc",
        "ends a text at a stop word, also one that the pooled model has read itself",
    ),
    Pin(
        "crewai.llms.providers.openai.completion:OpenAICompletion._ahandle_streaming_completion",
        "313454cb24a3",
        "reads the pieces that the pooled client gives",
    ),
    Pin(
        "crewai.llms.base_llm:BaseLLM._emit_call_started_event",
        "d10e91af1de4",
        "emitted only if it has listeners",
    ),
    Pin(
        "crewai.llms.base_llm:BaseLLM._emit_call_completed_event",
        "a308286032a8",
        "the same; it has the reason for which the model ended its answer",
    ),
    Pin(
        "crewai.llms.base_llm:BaseLLM._emit_call_failed_event",
        "533b3cd7baee",
        "the same",
    ),
    Pin(
        "crewai.llms.base_llm:BaseLLM._emit_stream_chunk_event",
        "5e56bd46da25",
        "the same; the run's token listener receives the piece",
    ),
    Pin(
        "crewai.events.stream_context:publish_stream_event",
        "1091e1ae5380",
        "publishes streamed pieces only if it has listeners",
    ),
    # Memory and knowledge (engine/memory/)
    Pin(
        "crewai.memory.recall_flow:RecallFlow",
        "8f8a6958e7d2",
        "its steps recall memories, in this order",
    ),
    Pin(
        "crewai.memory.encoding_flow:EncodingFlow",
        "76a92d8956d7",
        "its steps save memories, in this order",
    ),
    Pin(
        "crewai.memory.unified_memory:Memory",
        "ec88919585fc",
        "opens its storage, saves in a thread of its own, builds its embedder",
    ),
    Pin(
        "crewai.memory.unified_memory:_default_embedder",
        "f16ee707d933",
        "memories without an embedder get the deployment's",
    ),
    Pin(
        "crewai.memory.unified_memory:_non_streaming_analysis_llm",
        "ae456b7e6eca",
        "the model of a memory is a copy of an agent's",
    ),
    Pin(
        "crewai.memory.types:embed_text",
        "ba7e9c58f670",
        "calls an embedder, which may block",
    ),
    Pin(
        "crewai.memory.types:embed_texts",
        "4f74f07b8ee8",
        "calls an embedder, which may block",
    ),
    Pin(
        "crewai.rag.embeddings.factory:build_embedder",
        "89c83a8a243f",
        "builds the embedder that a crew defines",
    ),
    Pin(
        "crewai.crew:Crew._drain_memory_writes",
        "fc02c126b9cf",
        "waits for saves at the end of a crew",
    ),
    Pin(
        "crewai.crew:Crew.create_crew_memory",
        "5bf75abdaf1f",
        "runs whenever a crew is validated: for each executor",
    ),
    Pin(
        "crewai.crew:Crew.create_crew_knowledge",
        "22d1a35b82cf",
        "runs whenever a crew is validated: for each executor",
    ),
    Pin(
        "crewai.agent.core:Agent.set_knowledge",
        "069d12d15ecb",
        "reads and embeds an agent's sources on the event loop",
    ),
    Pin(
        "crewai.agent.core:Agent._retrieve_memory_context",
        "4fb0a1fcb36c",
        "recalls on the event loop, in suspendable code",
    ),
    Pin(
        "crewai.agent.utils:ahandle_knowledge_retrieval",
        "e8480b275b27",
        "calls a model on the event loop, in suspendable code",
    ),
    Pin(
        "crewai.knowledge.knowledge:Knowledge.add_sources",
        "dd248e08a0d4",
        "binds sources to a storage: crews share those of modules",
    ),
    Pin(
        "crewai.knowledge.storage.factory:resolve_knowledge_storage",
        "cfe0fd6adae9",
        "where the texts of sources are kept",
    ),
    Pin(
        "crewai.knowledge.storage.knowledge_storage:KnowledgeStorage.search",
        "84f525caf195",
        "joins the query, and returns nothing if it fails",
    ),
    Pin(
        "crewai.rag.chromadb.utils:_convert_distance_to_score",
        "9a08a51dc85e",
        "the score of a text; ours is equal",
    ),
    Pin(
        "crewai.llms.providers.openai.completion:OpenAICompletion._get_sync_client",
        "300ef96b089a",
        "the deployment's embedder uses it",
    ),
    # Memory and knowledge (engine/memory/)
    Pin(
        "crewai.memory.storage.lancedb_storage:LanceDBStorage.search",
        "5c949d635a08",
        "the score of a memory; ours is equal",
    ),
    Pin(
        "crewai.memory.storage.lancedb_storage:LanceDBStorage.list_scopes",
        "1b3b7dbdc32f",
        "the scopes of memories; ours are equal",
    ),
    # Made once for each class or declaration (engine/compat/schemas.py)
    Pin(
        "crewai.utilities.pydantic_schema_utils:generate_model_description",
        "83fc7c54b5ea",
        "depends on the class and the options alone",
    ),
    Pin(
        "crewai.project.json_loader:_strip_jsonc_comments",
        "df36f9f28b69",
        "depends on the text alone",
    ),
)

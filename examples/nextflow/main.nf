// Slides → stores, as a Nextflow process:
//
//   nextflow run examples/nextflow/main.nf --slides 'slides/*.svs' --out out -profile slurm
//
// A task a part of the cohort (--shard i/n), not one a slide: each start loads the models. The
// stores are written where they stay (params.out), not in the work folder: so cytofm itself skips
// what is finished when a task is tried again, and nothing is copied twice.
nextflow.enable.dsl = 2

params.slides = 'slides'
params.out = 'out'
params.parts = 4
params.settings = ''

process PART {
    tag "${part} of ${params.parts}"
    cpus 4
    memory '8 GB'
    time '4h'
    // 75: warned, or held by another process; 130 to 145: ended by a signal. Both go on.
    errorStrategy { task.exitStatus in [75, *(130..145)] ? 'retry' : 'terminate' }
    maxRetries 3

    input:
    val part

    output:
    path "${part}.done"

    script:
    """
    cytofm run ${params.slides} -o ${file(params.out).toAbsolutePath()} \\
        --shard ${part}/${params.parts} --threads ${task.cpus} ${params.settings} || [ \$? -eq 4 ]
    touch ${part}.done
    """
}

workflow {
    channel.of(0..<params.parts) | PART
}
